"""Additive attention masks: 0 where a token may look, closed where not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_CLOSED = -65536.0
"""The board's value (bf16 0xC780)."""
_CLOSED_FP16 = -65504.0
"""fp16 ends here, and an infinity would turn fully closed rows into NaN."""


def closed_mask(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """A mask with every slot closed."""
    return np.full(shape, _CLOSED_FP16 if dtype == np.float16 else _CLOSED, dtype)


def prefill_mask(count: int, used: int, chunk_len: int, cache_len: int, dtype: DTypeLike) -> NDArray[Any]:
    """The mask [1, P, cache_len + P] of a chunk of `count` tokens behind `used` cached ones.

    Row i is open at the used cache slots and at the chunk's tokens 0..i. Padding rows, `count`..P-1, stay closed.
    """
    mask = closed_mask((1, chunk_len, cache_len + chunk_len), dtype)
    mask[0, :count, :used] = 0
    for row in range(count):
        mask[0, row, cache_len : cache_len + row + 1] = 0
    return mask
