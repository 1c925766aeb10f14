"""Weight matrices as stored in files, and their quantization errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.core.errors import AxzooError
from axzoo.weights.encoding import FormatError, WeightFormat
from axzoo.weights.scales import Floats

PIECE = 1 << 18
"""Weights quantized at a time. They fit in the CPU cache, which is three times as fast as with larger pieces."""


@dataclass(frozen=True)
class StoredWeight:
    """A linear layer's weight, transposed for `x @ W`.

    `values` [in_features, out_features] are in the stored dtype; int4 has one value per byte here, two in the file.
    `scales` [groups, out_features] fp32 each cover in_features / groups consecutive rows; float types have 0 groups.
    `error` is ||stored - original|| / ||original|| (Frobenius norms; 0 for an all-zero weight).
    """

    values: NDArray[Any]
    scales: Floats
    error: float

    def dequantized(self) -> Floats:
        """[in_features, out_features] fp32, the numbers that exact mode multiplies with."""
        return dequantize(self.values.T, self.scales.T).T


def store_weight(role: str, blocks: Iterable[NDArray[Any]], shape: tuple[int, int], form: WeightFormat) -> StoredWeight:
    """Encodes a checkpoint's weight [out_features, in_features], given as consecutive blocks of rows in any float type.

    Uses memory for the result, one block and a few arrays of PIECE weights. Raises AxzooError, naming `role`, when
    `form` cannot represent a weight or its group size does not divide a row.
    """
    try:
        return _stored(blocks, shape, form)
    except FormatError as error:
        raise AxzooError(f"{role}: {error}") from None


def _stored(blocks: Iterable[NDArray[Any]], shape: tuple[int, int], form: WeightFormat) -> StoredWeight:
    rows, columns = shape
    values = np.empty((columns, rows), form.dtype)
    scales = np.empty((form.groups(columns), rows), np.float32)
    squared_error = squared_norm = 0.0
    start = 0
    for piece in _pieces(blocks, columns):
        weight: Floats = piece.astype(np.float32, copy=False)
        stop = start + len(weight)
        stored, piece_scales = form.encode(weight)
        values[:, start:stop] = stored.T
        scales[:, start:stop] = piece_scales.T
        squared_norm += _sum_of_squares(weight)
        error = dequantize(stored, piece_scales)
        error -= weight
        squared_error += _sum_of_squares(error)
        start = stop
    return StoredWeight(values, scales, (squared_error / squared_norm) ** 0.5 if squared_norm else 0.0)


def dequantize(values: NDArray[Any], scales: Floats) -> Floats:
    """values [rows, columns], scales [rows, groups] fp32 -> weights [rows, columns] fp32; 0 groups: unscaled."""
    weights: Floats = values.astype(np.float32, order="C")
    if scales.shape[1]:
        grouped = weights.reshape(*scales.shape, -1)
        grouped *= scales[:, :, None]
    return weights


def _pieces(blocks: Iterable[NDArray[Any]], columns: int) -> Iterator[NDArray[Any]]:
    """Splits the blocks into runs of rows with about PIECE weights."""
    step = max(1, PIECE // max(1, columns))
    for block in blocks:
        for start in range(0, len(block), step):
            yield block[start : start + step]


def _sum_of_squares(matrix: Floats) -> float:
    """Summed row by row in double precision, because BLAS dot products differ between CPUs."""
    exact = matrix.astype(np.float64)
    exact *= exact
    return math.fsum(exact.sum(axis=1).tolist())
