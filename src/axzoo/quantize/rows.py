"""One symmetric scale per output row: how the vendor's compiler stores integer weights.

The two scale rules were read off the vendor's files by third parties; both keep the grid's zero at weight 0, and both
give an all-zero row the scale 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.int8]


def quantize_rows_full_range(weight: Floats) -> tuple[Codes, Floats]:
    """Rule A, used for layers: the entry of largest magnitude becomes exactly -128, so the scale carries a sign.

    weight [rows, columns] fp32, finite -> codes [rows, columns] int8, scales [rows] fp32:
    s = -w[argmax|w|] / 128, q = clip(floor(w / s + 0.5), -128, 127).
    """
    peak = np.take_along_axis(weight, np.abs(weight).argmax(axis=1, keepdims=True), axis=1)
    scales = _nonzero(peak / np.float32(-128))
    codes = np.clip(np.floor(weight / scales + np.float32(0.5)), -128, 127).astype(np.int8)
    return codes, scales[:, 0]


def quantize_rows_symmetric(weight: Floats) -> tuple[Codes, Floats]:
    """Rule B, used for lm_head: s = max|w| / 127, q = round_half_even(w / s), within [-127, 127].

    weight [rows, columns] fp32, finite -> codes [rows, columns] int8, scales [rows] fp32.
    """
    scales = _nonzero(np.abs(weight).max(axis=1, keepdims=True) / np.float32(127))
    codes = np.clip(np.rint(weight / scales), -127, 127).astype(np.int8)
    return codes, scales[:, 0]


def dequantize_rows(codes: Codes, scales: Floats) -> Floats:
    """codes [rows, columns] int8, scales [rows] fp32 -> weights [rows, columns] fp32."""
    return codes.astype(np.float32) * scales[:, None]


def _nonzero(scales: Floats) -> Floats:
    return np.where(scales == 0, np.float32(1), scales)
