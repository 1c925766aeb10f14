"""Writes the embedding table as raw little-endian bf16 rows, the board's `.bfloat16.bin`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Bf16Rounding = Callable[[NDArray[Any]], NDArray[Any]]
"""A function from floats of any dtype to bf16 of the same shape."""


def nearest_even(values: NDArray[Any]) -> NDArray[Any]:
    """Rounds to the nearest bf16, ties to even."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return values.astype(ml_dtypes.bfloat16)


def truncated(values: NDArray[Any]) -> NDArray[Any]:
    """Keeps the upper 16 bits of fp32, as ax-llm-build's `fp32_to_bf16` does; NaNs stay NaNs."""
    with np.errstate(invalid="ignore"):
        exact = np.ascontiguousarray(values, np.float32)
    kept: NDArray[Any] = (exact.view(np.uint32) >> 16).astype(np.uint16)
    kept[np.isnan(exact) & (kept & 0x7F == 0)] |= 0x40  # a zero mantissa would mean infinity
    return kept.view(ml_dtypes.bfloat16)


def write_embedding(blocks: Iterable[NDArray[Any]], file: BinaryIO, rounding: Bf16Rounding = nearest_even) -> None:
    """Writes the table [vocab_size, hidden_size], given as blocks of rows."""
    for block in blocks:
        file.write(rounding(block).tobytes())
