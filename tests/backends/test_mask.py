"""The attention mask with and without a sliding window, compared with a loop over pairs of tokens."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from run_block import run_block

from axzoo.backends.host.attention import MASKED, Rotary, attention_mask
from axzoo.backends.host.builder import GraphBuilder


def _mask(window: int | None, cached: int, start: int, tokens: int) -> NDArray[np.float32]:
    """The mask for `tokens` tokens from position `start`, after a cache with `cached` slots, `start` of them filled."""
    mask = np.zeros((1, tokens, cached + tokens), np.float32)
    mask[:, :, start:cached] = MASKED
    mask[:, :, cached:] = np.triu(np.full((tokens, tokens), MASKED), 1)

    def make(g: GraphBuilder) -> list[str]:
        rotary = Rotary("", "", g.cast("indices", "int64", "rope/positions"))
        return [attention_mask(g, window, rotary)]

    found = run_block(
        make,
        rank=4,
        mask=mask.astype(ml_dtypes.bfloat16),
        indices=np.arange(start, start + tokens, dtype=np.uint32)[None],
        K_cache=np.zeros((1, cached, 2), np.float32),
    )
    return found.popitem()[1]


@pytest.mark.parametrize("window", [None, 1, 2, 5, 100])
@pytest.mark.parametrize("cached, start, tokens", [(9, 9, 1), (9, 4, 1), (9, 0, 1), (8, 8, 4), (8, 8, 1), (0, 0, 6)])
def test_a_token_sees_its_window(window: int | None, cached: int, start: int, tokens: int) -> None:
    found = _mask(window, cached, start, tokens)
    assert found.shape == (1, 1, tokens, cached + tokens)
    assert found.dtype == np.float32
    positions = [slot if slot < start else None for slot in range(cached)] + list(range(start, start + tokens))
    for (row, query), (column, key) in itertools.product(enumerate(range(start, start + tokens)), enumerate(positions)):
        seen = key is not None and key <= query and (window is None or key > query - window)
        assert (found[0, 0, row, column] == 0) == seen
        assert seen or found[0, 0, row, column] <= MASKED


def test_without_a_window_the_mask_is_unchanged() -> None:
    assert_array_equal(np.unique(_mask(None, 4, 2, 3)), [MASKED, 0])
