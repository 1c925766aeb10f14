"""fp8 codes compared with the list of all numbers of the type, built from its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from matrices import MATRICES
from numpy.typing import NDArray

from axzoo.core.dtypes import NUMPY_DTYPES
from axzoo.weights.encoding import float8_codes, float8_max
from axzoo.weights.scales import symmetric_scales

Floats = NDArray[np.float32]
TYPES = pytest.mark.parametrize("name, largest", [("fp8_e4m3", 448), ("fp8_e5m2", 57344)])


def _numbers(name: str) -> dict[int, float]:
    """The finite numbers >= 0 by their byte, with exponent and mantissa as defined by OCP "8-bit floating point"."""
    exponent_bits, mantissa_bits = (4, 3) if name == "fp8_e4m3" else (5, 2)
    bias = 2 ** (exponent_bits - 1) - 1
    found = {}
    for byte in range(0x7F if name == "fp8_e4m3" else 0x7C):  # then NaN, or infinity and NaNs
        exponent, mantissa = byte >> mantissa_bits, byte % 2**mantissa_bits
        fraction = mantissa / 2**mantissa_bits
        found[byte] = 2.0 ** (1 - bias) * fraction if exponent == 0 else 2.0 ** (exponent - bias) * (1 + fraction)
    return found


@TYPES
def test_the_largest_number(name: str, largest: int) -> None:
    assert float8_max(NUMPY_DTYPES[name]) == largest == max(_numbers(name).values())


@TYPES
@given(weight=MATRICES)
def test_each_code_is_the_nearest_number(name: str, largest: int, weight: Floats) -> None:
    dtype = NUMPY_DTYPES[name]
    scales = symmetric_scales(weight, largest)
    codes = float8_codes(weight, scales, dtype)
    assert (codes.dtype, codes.shape) == (dtype, weight.shape)
    numbers = _numbers(name)
    for value, byte in zip((weight / scales[:, None]).ravel().tolist(), codes.view(np.uint8).ravel(), strict=True):
        nearest = min(numbers, key=lambda b: (abs(numbers[b] - abs(value)), b % 2))  # ties to even
        assert byte & 0x7F == nearest
        assert bool(byte & 0x80) == (np.signbit(value))


@TYPES
def test_golden(name: str, largest: int) -> None:
    weight: NDArray[Any] = np.array([[largest, -1, 0.5, 0], [0, 0, 0, 0]], np.float32)
    scales = symmetric_scales(weight, largest)
    assert scales.tolist() == [1, 1]
    golden = {"fp8_e4m3": "7eb83000 00000000", "fp8_e5m2": "7bbc3800 00000000"}
    assert float8_codes(weight, scales, NUMPY_DTYPES[name]).tobytes().hex(" ", 4) == golden[name]


@TYPES
def test_values_beyond_the_range_saturate(name: str, largest: int) -> None:
    codes = float8_codes(np.array([[1e6, -1e30, 3e38]], np.float32), np.ones(1, np.float32), NUMPY_DTYPES[name])
    assert codes.astype(np.float32).tolist() == [[largest, -largest, largest]]
