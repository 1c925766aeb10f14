"""Eight-bit floats under one scale per row: the row's largest magnitude becomes the type's largest number."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from axzoo.quantize.rows import Floats


def float8_codes(weight: Floats, scales: Floats, dtype: np.dtype[Any]) -> NDArray[Any]:
    """weight [rows, columns] / scales [rows], rounded to nearest even in float8 `dtype`, beyond its range saturated."""
    largest = largest_of(dtype)
    codes: NDArray[Any] = np.clip(weight / scales[:, None], -largest, largest).astype(dtype)
    return codes


def largest_of(dtype: np.dtype[Any]) -> float:
    """448 for e4m3, 57344 for e5m2."""
    return float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
