from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from axzoo.runtime.buffers import full_mask, prefill_mask


def test_masked_positions_have_the_bits_of_the_board() -> None:
    assert set(full_mask((1, 1, 8), ml_dtypes.bfloat16).view(np.uint16).flat) == {0xC780}


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_masked_values_are_finite(dtype: type) -> None:
    mask = full_mask((2, 3), dtype)
    assert mask.dtype == dtype
    assert np.isfinite(mask).all()
    assert (mask <= -65504).all()


@pytest.mark.parametrize(("used", "cache_len"), [(0, 0), (4, 4), (3, 4), (8, 8), (5, 8)])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_rows_attend_to_the_past_and_to_themselves(used: int, cache_len: int, count: int) -> None:
    mask = prefill_mask(count, used, 4, cache_len, np.float32)
    assert mask.shape == (1, 4, cache_len + 4)
    for row in range(4):
        attended = set(np.flatnonzero(mask[0, row] == 0))
        assert attended == (set() if row >= count else {*range(used), *range(cache_len, cache_len + row + 1)})
