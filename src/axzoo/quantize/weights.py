"""A weight matrix as a file stores it, for every weight type, and the error that storing it made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.dtypes import NUMPY_DTYPES
from axzoo.errors import AxzooError
from axzoo.quantize.rows import Codes, Floats, dequantize_rows, quantize_rows_full_range, quantize_rows_symmetric

PIECE = 1 << 18
"""Weights that are quantized at once: what the processor's cache holds, three times as fast as larger pieces."""

RowRule = Callable[[Floats], tuple[Codes, Floats]]
LAYER_RULE: RowRule = quantize_rows_full_range
POST_RULE: RowRule = quantize_rows_symmetric


@dataclass(frozen=True)
class StoredWeight:
    """A linear layer's weight, transposed for `x @ W`.

    values [in_features, out_features] in the stored dtype; scales [out_features] fp32 for integer codes, else None.
    error is ||stored - original|| / ||original|| (Frobenius norms; 0 for an all-zero weight).
    """

    values: NDArray[Any]
    scales: Floats | None
    error: float

    def dequantized(self) -> Floats:
        """[in_features, out_features] fp32: exactly the numbers an exact engine multiplies with."""
        values: Floats = self.values.astype(np.float32)
        return values if self.scales is None else values * self.scales


def store_weight(
    blocks: Iterable[NDArray[Any]], shape: tuple[int, int], weight_type: str, rule: RowRule
) -> StoredWeight:
    """Stores a checkpoint's weight [out_features, in_features], given as consecutive blocks of rows in any float dtype.

    Beside the result and one block, a few arrays of PIECE weights are held. Raises AxzooError when a weight is beyond
    the range of `weight_type`.
    """
    rows, columns = shape
    dtype = NUMPY_DTYPES["int8" if weight_type == "s8" else weight_type]
    values = np.empty((columns, rows), dtype)
    scales = np.empty(rows, np.float32) if weight_type == "s8" else None
    squared_error = squared_norm = 0.0
    start = 0
    for piece in _pieces(blocks, columns):
        weight: Floats = piece.astype(np.float32)
        stop = start + len(weight)
        if scales is None:
            with np.errstate(over="ignore"):
                stored = weight.astype(dtype)
            restored: Floats = stored.astype(np.float32)
            if not np.isfinite(restored).all():
                raise AxzooError(f"a weight of magnitude {np.abs(weight).max():g} is beyond {weight_type}: use fp32")
        else:
            stored, scales[start:stop] = rule(weight)
            restored = dequantize_rows(stored, scales[start:stop])
        values[:, start:stop] = stored.T
        squared_norm += _sum_of_squares(weight)
        restored -= weight
        squared_error += _sum_of_squares(restored)
        start = stop
    return StoredWeight(values, scales, (squared_error / squared_norm) ** 0.5 if squared_norm else 0.0)


def _pieces(blocks: Iterable[NDArray[Any]], columns: int) -> Iterator[NDArray[Any]]:
    """The same rows, about PIECE weights at a time."""
    step = max(1, PIECE // max(1, columns))
    for block in blocks:
        for start in range(0, len(block), step):
            yield block[start : start + step]


def _sum_of_squares(matrix: Floats) -> float:
    """Row by row in double precision: BLAS's dot product would differ from one kind of CPU to the next."""
    return math.fsum(float(np.square(row, dtype=np.float64).sum()) for row in matrix)
