"""A prompt of 1,000 tokens through eight prefill groups against the same tokens one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from axzoo.check.metrics import cosine
from axzoo.runtime.model import Model
from axzoo.weights.recipe import Recipe
from tiny_model import Checkpoint, build, make_checkpoint

TOKENS = 1000
GROUPS = tuple(range(128, 1024, 128))


@pytest.fixture(scope="module")
def long_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tmp_path_factory.mktemp("long"), {"max_position_embeddings": 1024})


@pytest.mark.parametrize(
    "state, is_close",
    [
        ("bf16", lambda found, expected: cosine(found, expected) >= 0.9999),
        ("fp32", lambda found, expected: np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()),
    ],
)
def test_chunks_give_the_same_logits_as_single_tokens(
    long_checkpoint: Checkpoint,
    tmp_path: Path,
    state: Literal["bf16", "fp32"],
    is_close: Callable[[NDArray[np.float32], NDArray[np.float32]], bool],
) -> None:
    """Compare the logits after every token, and after one more decoded token."""
    recipe = Recipe("fp32", "fp32", state, prefill_len=128, kv_cache_len=1023, last_kv_cache_len=GROUPS)
    built = build(long_checkpoint, recipe, tmp_path)
    *prompt, extra = (int(i) for i in np.random.default_rng(0).integers(0, 262, TOKENS + 1))
    chunked, single = built.model(long_checkpoint), built.model(long_checkpoint)
    for token, (found, expected) in enumerate(zip(_chunked(chunked, prompt), _single(single, prompt), strict=True)):
        assert is_close(found, expected), f"after token {token}"
    assert chunked.used == single.used == TOKENS
    assert is_close(chunked.decode(extra), single.decode(extra))


def _chunked(model: Model, ids: Sequence[int]) -> list[NDArray[np.float32]]:
    """Return the logits after each token, from the post layer and the hidden states of the last layer."""
    last: dict[int, NDArray[Any]] = {}
    model.prefill(ids, lambda layer, position, rows: last.update({position: rows}) if layer == 1 else None)
    assert sorted(last) == list(range(0, TOKENS, 128))
    rows = np.concatenate([last[position] for position in sorted(last)])
    return [model.logits(row[None, None]) for row in rows]


def _single(model: Model, ids: Sequence[int]) -> list[NDArray[np.float32]]:
    return [model.decode(token) for token in ids]
