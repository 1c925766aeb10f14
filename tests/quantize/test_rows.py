"""The two row rules: golden codes, a second implementation in plain Python, and what must hold of any matrix."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from axzoo.quantize.rows import dequantize_rows, quantize_rows_full_range, quantize_rows_symmetric

Rule = Callable[[NDArray[np.float32]], tuple[NDArray[np.int8], NDArray[np.float32]]]
RULES = pytest.mark.parametrize("rule", [quantize_rows_full_range, quantize_rows_symmetric], ids=["A", "B"])

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
ANY = hnp.arrays(np.float32, SHAPES, elements=st.floats(-(2.0**127), 2.0**127, width=32))
"""Denormals and zeros included, up to the end of fp32's range."""
TAME = hnp.arrays(np.float32, SHAPES, elements=st.sampled_from([0.0, 0.5, 1.5, 63.5, 127.0, 127.5, 128.0])).flatmap(
    lambda w: hnp.arrays(np.float32, w.shape, elements=st.sampled_from([-1.0, 1.0, 2.0**-30, -3.0])).map(w.__mul__)
)
"""Ties and peaks, of both signs."""
MATRICES = st.one_of(ANY, TAME)
SMALLEST_EXACT = 128 * 2.0**-126
"""Below this peak a scale is denormal, and only the size of the error can be promised."""


def _plain(rule: Rule, row: list[float]) -> tuple[list[int], float]:
    """One row by the documented formulas, each operation rounded to fp32."""
    peak = max(row, key=abs)  # the first of the largest
    if rule is quantize_rows_full_range:
        scale = _fp32(-peak / 128) or 1.0
        return [min(127, max(-128, math.floor(_fp32(_fp32(w / scale) + 0.5)))) for w in row], scale
    scale = _fp32(abs(peak) / 127) or 1.0
    return [min(127, max(-127, round(_fp32(w / scale)))) for w in row], scale


def _fp32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


@RULES
@given(weight=MATRICES)
def test_as_plain_python_does_it(rule: Rule, weight: NDArray[np.float32]) -> None:
    codes, scales = rule(weight)
    assert (codes.dtype.type, scales.dtype.type, codes.shape, scales.shape) == (
        np.int8,
        np.float32,
        weight.shape,
        weight.shape[:1],
    )
    for row, found, scale in zip(weight.tolist(), codes.tolist(), scales.tolist(), strict=True):
        assert (found, scale) == _plain(rule, row)


def test_golden_full_range() -> None:
    weight = np.array([[1.0, -0.5, 0.25, -0.1], [0, 0, 0, 0], [-128, 0.5, -0.5, 1.5], [3, -3, 0, 1.5]], np.float32)
    codes, scales = quantize_rows_full_range(weight)
    assert codes.tobytes().hex(" ", 4) == "8040e00d 00000000 80010002 807f00c0"
    assert scales.tobytes().hex(" ", 4) == "000000bc 0000803f 0000803f 0000c0bc"  # -1/128, 1, 1, -3/128


def test_golden_symmetric() -> None:
    weight = np.array([[127.0, -0.5, 1.5, 2.5], [0, 0, 0, 0], [-254, 1, -3, 5], [0.5, 0.25, 0, -0.5]], np.float32)
    codes, scales = quantize_rows_symmetric(weight)
    assert codes.tobytes().hex(" ", 4) == "7f000202 00000000 8100fe02 7f400081"
    assert scales.tobytes().hex(" ", 4) == "0000803f 0000803f 00000040 0402813b"  # 1, 1, 2, fp32(0.5/127)


@RULES
@given(weight=MATRICES)
def test_the_error_is_at_most_half_a_step(rule: Rule, weight: NDArray[np.float32]) -> None:
    codes, scales = rule(weight)
    exact = weight.astype(np.float64)
    error = np.abs(codes.astype(np.float64) * scales[:, None].astype(np.float64) - exact)
    peak, step = np.abs(exact).max(axis=1, keepdims=True), np.abs(scales[:, None].astype(np.float64))
    # rule A has no code 128: what lies opposite the peak is clipped, by at most one step
    clipped = (exact / scales[:, None] > 127.5) & (rule is quantize_rows_full_range)
    bound = np.where(clipped, step, step / 2) * (1 + 1e-5)
    assert (error <= np.where(peak < SMALLEST_EXACT, SMALLEST_EXACT, bound)).all()


@RULES
@given(weight=MATRICES)
def test_codes_and_scales_are_of_the_rule(rule: Rule, weight: NDArray[np.float32]) -> None:
    codes, scales = rule(weight)
    peaks = np.take_along_axis(weight, np.abs(weight).argmax(axis=1, keepdims=True), axis=1)[:, 0]
    assert np.isfinite(scales).all()
    assert (scales != 0).all()
    zero, exact = peaks == 0, np.abs(peaks) >= SMALLEST_EXACT
    assert_array_equal(scales[zero], 1)
    assert_array_equal(codes[zero], 0)
    if rule is quantize_rows_full_range:
        assert_array_equal((np.float32(-128) * scales)[exact], peaks[exact])  # the peak is kept exactly
        assert_array_equal(codes.min(axis=1)[exact], -128)
    else:
        assert (scales > 0).all()
        assert codes.min() >= -127
        assert_array_equal(np.abs(codes).max(axis=1)[exact], 127)


@RULES
@given(weight=MATRICES)
def test_quantizing_again_changes_nothing(rule: Rule, weight: NDArray[np.float32]) -> None:
    weight = np.where(np.abs(weight).max(axis=1, keepdims=True) < SMALLEST_EXACT, np.float32(0), weight)
    codes, scales = rule(weight)
    again, scales_again = rule(dequantize_rows(codes, scales))
    assert_array_equal(again, codes)
    np.testing.assert_allclose(scales_again, scales, rtol=2**-23 if rule is quantize_rows_symmetric else 0)


@RULES
@given(weight=MATRICES)
def test_a_row_does_not_know_the_others(rule: Rule, weight: NDArray[np.float32]) -> None:
    codes, scales = rule(weight)
    for index in range(len(weight)):
        alone, scale = rule(weight[index : index + 1])
        assert_array_equal(alone[0], codes[index])
        assert_array_equal(scale, scales[index : index + 1])


@given(weight=ANY)
def test_full_range_of_the_negative_is_the_same_codes(weight: NDArray[np.float32]) -> None:
    codes, scales = quantize_rows_full_range(weight)
    mirrored, mirrored_scales = quantize_rows_full_range(-weight)
    some = np.abs(weight).max(axis=1) >= SMALLEST_EXACT
    assert_array_equal(mirrored, codes)
    assert_array_equal(mirrored_scales[some], -scales[some])


def test_dequantize_is_code_times_scale() -> None:
    codes, scales = np.array([[-128, 127], [1, 0]], np.int8), np.array([-0.5, 3.0], np.float32)
    assert_array_equal(dequantize_rows(codes, scales), np.array([[64, -63.5], [3, 0]], np.float32))
