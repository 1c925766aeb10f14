"""Scale rules: the vendor's rules A and B, and a search for the scale with the least squared error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.int8]


def full_range_scales(weight: Floats, levels: int) -> Floats:
    """Rule A, used for layers: the entry of largest magnitude gets the code -levels, so the scale has a sign.

    weight [rows, columns] fp32, finite -> scales [rows] fp32: s = -w[argmax|w|] / levels; 128 levels in s8, 8 in s4.
    """
    peak = np.take_along_axis(weight, np.abs(weight).argmax(axis=1, keepdims=True), axis=1)
    return _nonzero(peak / np.float32(-levels))[:, 0]


def full_range_codes(weight: Floats, scales: Floats, levels: int) -> Codes:
    """Rule A codes of weight [rows, columns] for scales [rows]: clip(floor(w / s + 0.5), -levels, levels - 1)."""
    steps = weight / scales[:, None]
    steps += np.float32(0.5)
    np.floor(steps, out=steps)
    return _clipped(steps, -levels, levels - 1)


def symmetric_scales(weight: Floats, max_code: float) -> Floats:
    """Rule B, used for lm_head: s = max|w| / max_code, the largest number of the stored type; 127 in s8.

    weight [rows, columns] fp32, finite -> scales [rows] fp32.
    """
    return _nonzero(np.abs(weight).max(axis=1) / np.float32(max_code))


def symmetric_codes(weight: Floats, scales: Floats, max_code: int) -> Codes:
    """Rule B codes of weight [rows, columns] for scales [rows]: round_half_even(w / s), clipped to +-max_code."""
    steps = weight / scales[:, None]
    np.rint(steps, out=steps)
    return _clipped(steps, -max_code, max_code)


def _clipped(steps: Floats, lowest: int, highest: int) -> Codes:
    """Converts integral floats to codes; overwrites `steps`."""
    codes: Codes = np.clip(steps, lowest, highest, out=steps).astype(np.int8)
    return codes


def _nonzero(scales: Floats) -> Floats:
    return np.where(scales == 0, np.float32(1), scales)


FACTORS = tuple(np.float32(sign * step / 16) for step in range(16, 7, -1) for sign in (1, -1))
"""Candidates, relative to the vendor's scale. Smaller scales clip the largest weights but give a finer grid; the sign
chooses the end that has one more level."""

REFINEMENTS = 2
"""Refinement steps, each a least-squares fit of the scale to its codes. In measurements, more factors or refinements
improved s4 by less than 0.5 %."""


def least_squares_scales(weight: Floats, levels: int, importance: Floats | None = None) -> Floats:
    """weight [rows, columns] fp32, finite -> scales [rows] fp32 for rule A codes, with a small squared error.

    `importance`, broadcast to the shape of `weight`, weights the squared errors; None weights them equally. The search
    tries FACTORS of rule A's scale and refines the best one. The error is never larger than with rule A.
    """
    vendor = full_range_scales(weight, levels)
    steps = weight / vendor[:, None]
    if importance is None:
        importance = np.ones(1, np.float32)
    best, best_error = np.ones_like(vendor), np.full_like(vendor, np.inf)
    for factor in FACTORS:
        best, best_error = _keep_better(steps, best, best_error, np.full_like(best, factor), levels, importance)
    for _ in range(REFINEMENTS):
        best, best_error = _keep_better(
            steps, best, best_error, _fitted(steps, best, levels, importance), levels, importance
        )
    scales: Floats = vendor * best
    return np.where(scales == 0, vendor, scales)


def _keep_better(
    steps: Floats, best: Floats, best_error: Floats, factors: Floats, levels: int, importance: Floats
) -> tuple[Floats, Floats]:
    error = _squared_error(steps, factors, levels, importance)
    better = error < best_error
    return np.where(better, factors, best), np.where(better, error, best_error)


def _squared_error(steps: Floats, factors: Floats, levels: int, importance: Floats) -> Floats:
    error = full_range_codes(steps, factors, levels) * factors[:, None]
    error -= steps
    np.square(error, out=error)
    error *= importance
    return np.asarray(error.sum(axis=1))


def _fitted(steps: Floats, factors: Floats, levels: int, importance: Floats) -> Floats:
    """The least-squares fit to the codes of `factors`: <steps, codes> / <codes, codes>, weighted by importance."""
    codes = full_range_codes(steps, factors, levels).astype(np.float32)
    norm = (np.square(codes) * importance).sum(axis=1)
    fitted: Floats = np.divide((steps * codes * importance).sum(axis=1), norm, out=factors.copy(), where=norm > 0)
    return fitted
