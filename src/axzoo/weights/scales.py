"""The scale of a row that stores it with the least squared error, in place of the vendor's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.int8]


def full_range_scales(weight: Floats, levels: int) -> Floats:
    """Rule A, used for layers: the entry of largest magnitude becomes exactly -levels, so the scale carries a sign.

    weight [rows, columns] fp32, finite -> scales [rows] fp32: s = -w[argmax|w|] / levels; 128 levels in s8, 8 in s4.
    """
    peak = np.take_along_axis(weight, np.abs(weight).argmax(axis=1, keepdims=True), axis=1)
    return _nonzero(peak / np.float32(-levels))[:, 0]


def full_range_codes(weight: Floats, scales: Floats, levels: int) -> Codes:
    """Rule A's codes of weight [rows, columns] under scales [rows]: clip(floor(w / s + 0.5), -levels, levels - 1)."""
    steps = weight / scales[:, None]
    steps += np.float32(0.5)
    np.floor(steps, out=steps)
    return _clipped(steps, -levels, levels - 1)


def symmetric_scales(weight: Floats, largest: float) -> Floats:
    """Rule B, used for lm_head: s = max|w| / largest, the largest number of the stored type; 127 in s8.

    weight [rows, columns] fp32, finite -> scales [rows] fp32.
    """
    return _nonzero(np.abs(weight).max(axis=1) / np.float32(largest))


def symmetric_codes(weight: Floats, scales: Floats, largest: int) -> Codes:
    """Rule B's codes of weight [rows, columns] under scales [rows]: round_half_even(w / s), within +-largest."""
    steps = weight / scales[:, None]
    np.rint(steps, out=steps)
    return _clipped(steps, -largest, largest)


def _clipped(steps: Floats, lowest: int, highest: int) -> Codes:
    """Whole numbers, which are overwritten, as codes."""
    codes: Codes = np.clip(steps, lowest, highest, out=steps).astype(np.int8)
    return codes


def _nonzero(scales: Floats) -> Floats:
    return np.where(scales == 0, np.float32(1), scales)


FACTORS = tuple(np.float32(sign * step / 16) for step in range(16, 7, -1) for sign in (1, -1))
"""Of the vendor's scale. Clipping the largest weights pays for a finer grid; the sign says which end clips less."""

REFINEMENTS = 2
"""Each fits the scale to the codes it gave. Measured: more factors or refinements make s4 less than 0.5 % better."""


def least_squares_scales(weight: Floats, levels: int, importance: Floats | None = None) -> Floats:
    """weight [rows, columns] fp32, finite -> scales [rows] fp32 for rule A's codes.

    `importance`, which broadcasts to the weight's shape, is how much an error counts; without it all count alike.
    Searched among FACTORS of rule A's scale, the best then refined; the error is never above rule A's.
    """
    vendor = full_range_scales(weight, levels)
    steps = weight / vendor[:, None]
    counts = np.ones(1, np.float32) if importance is None else importance
    best, least = np.ones_like(vendor), np.full_like(vendor, np.inf)
    for factor in FACTORS:
        best, least = _better(steps, best, least, np.full_like(best, factor), levels, counts)
    for _ in range(REFINEMENTS):
        best, least = _better(steps, best, least, _fitted(steps, best, levels, counts), levels, counts)
    scales: Floats = vendor * best
    return np.where(scales == 0, vendor, scales)


def _better(
    steps: Floats, best: Floats, least: Floats, factors: Floats, levels: int, counts: Floats
) -> tuple[Floats, Floats]:
    error = _squared_error(steps, factors, levels, counts)
    less = error < least
    return np.where(less, factors, best), np.where(less, error, least)


def _squared_error(steps: Floats, factors: Floats, levels: int, counts: Floats) -> Floats:
    error = full_range_codes(steps, factors, levels) * factors[:, None]
    error -= steps
    np.square(error, out=error)
    error *= counts
    return np.asarray(error.sum(axis=1))


def _fitted(steps: Floats, factors: Floats, levels: int, counts: Floats) -> Floats:
    """The factors that fit the codes of `factors` best: <steps, codes> / <codes, codes>, as each column counts."""
    codes = full_range_codes(steps, factors, levels).astype(np.float32)
    norm = (np.square(codes) * counts).sum(axis=1)
    fitted: Floats = np.divide((steps * codes * counts).sum(axis=1), norm, out=factors.copy(), where=norm > 0)
    return fitted
