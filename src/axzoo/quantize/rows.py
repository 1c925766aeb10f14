"""One symmetric scale per row: how the vendor's compiler stores integer weights.

The two rules were read off the vendor's files by third parties. Each is a scale for a row and, apart from it, the codes
of weights under given scales: who chooses scales otherwise, or rounds otherwise, replaces one half. Both rules keep the
grid's zero at weight 0, and both give an all-zero row the scale 1.
"""

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
