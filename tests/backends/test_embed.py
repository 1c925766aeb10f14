"""fp32 to bf16 with both roundings, for arbitrary fp32 bit patterns."""

from __future__ import annotations

import io
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from axzoo.weights.bf16 import Bf16Rounding, nearest_even, truncated, write_embedding

BITS = st.lists(
    st.integers(0, 2**32 - 1) | st.sampled_from([0x7F800000, 0xFF800000, 0x7F800001, 0xFF80FFFF]), min_size=1
)
PATTERNS = np.arange(1 << 16, dtype=np.uint16)
"""All bf16 bit patterns."""


def _floats(bits: list[int]) -> NDArray[np.float32]:
    return np.array(bits, np.uint32).view(np.float32)


def _is_nan(patterns: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Without numpy's isnan, which warns about signaling NaNs."""
    return patterns & 0x7FFF > 0x7F80


@given(BITS)
def test_truncation_rounds_towards_zero(bits: list[int]) -> None:
    values = _floats(bits)
    kept = truncated(values)
    assert kept.dtype == ml_dtypes.bfloat16
    assert (np.isnan(kept) == np.isnan(values)).all()
    assert (np.signbit(kept) == np.signbit(values)).all()
    finite = np.isfinite(values)
    assert (np.isinf(kept) == np.isinf(values)).all()
    assert (np.abs(kept[finite].astype(np.float32)) <= np.abs(values[finite])).all()
    further = np.nextafter(kept[finite], np.copysign(np.array(np.inf, kept.dtype), kept[finite]))
    assert (np.abs(further.astype(np.float32)) > np.abs(values[finite])).all()


@given(BITS)
def test_truncation_equals_the_vendors_tool(bits: list[int]) -> None:
    """Except NaNs that would become infinity."""
    for value, kept in zip(bits, truncated(_floats(bits)).view(np.uint16), strict=True):
        (number,) = struct.unpack("<f", struct.pack("<I", value))
        lost = number != number and value >> 16 & 0x7F == 0
        assert kept == (value >> 16 | 0x40 if lost else value >> 16)


@given(BITS)
def test_rounding_to_nearest_even(bits: list[int]) -> None:
    for value, rounded in zip(bits, nearest_even(_floats(bits)), strict=True):
        (number,) = struct.unpack("<f", struct.pack("<I", value))
        if number != number:
            assert np.isnan(rounded)
        else:
            assert rounded.view(np.uint16) == (value + 0x7FFF + (value >> 16 & 1)) >> 16


@pytest.mark.parametrize("rounding", [nearest_even, truncated])
def test_bf16_values_do_not_change(rounding: Bf16Rounding) -> None:
    numbers = PATTERNS[~_is_nan(PATTERNS)].view(ml_dtypes.bfloat16)
    for given_as in (numbers, numbers.astype(np.float32)):
        assert (rounding(given_as).view(np.uint16) == numbers.view(np.uint16)).all()
    nans = PATTERNS[_is_nan(PATTERNS)].view(ml_dtypes.bfloat16)
    assert _is_nan(rounding(nans).view(np.uint16)).all()


@pytest.mark.parametrize("rounding", [nearest_even, truncated])
def test_rows_that_are_not_contiguous(rounding: Bf16Rounding) -> None:
    table = np.arange(12, dtype=np.float32).reshape(3, 4) / 7
    assert (rounding(table.T) == rounding(table).T).all()


def test_embedding_uses_the_given_rounding() -> None:
    table = np.array([[1.0, 1.0078124]], np.float32)  # just below the next bf16 value
    written = []
    for options in ((), (truncated,)):
        file = io.BytesIO()
        write_embedding([table, table], file, *options)
        written.append(file.getvalue().hex())
    assert written == ["803f813f" * 2, "803f803f" * 2]
