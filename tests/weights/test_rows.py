"""The two row rules: golden codes, a second implementation in plain Python, and invariants for any matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from matrices import ANY, MATRICES, fp32
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from axzoo.weights.scales import full_range_codes, full_range_scales, symmetric_codes, symmetric_scales

Floats = NDArray[np.float32]
Quantized = tuple[NDArray[np.int8], Floats]

SMALLEST_EXACT = 128 * 2.0**-126
"""Below this peak the scale is denormal, and only the magnitude of the error is guaranteed."""


@dataclass(frozen=True)
class Rule:
    full_range: bool
    levels: int

    def __call__(self, weight: Floats) -> Quantized:
        if self.full_range:
            scales = full_range_scales(weight, self.levels)
            return full_range_codes(weight, scales, self.levels), scales
        scales = symmetric_scales(weight, self.levels)
        return symmetric_codes(weight, scales, self.levels), scales


A8, A4, B8 = Rule(True, 128), Rule(True, 8), Rule(False, 127)
RULES = pytest.mark.parametrize("rule", [A8, A4, B8], ids=["A-s8", "A-s4", "B-s8"])


def _plain(rule: Rule, row: list[float]) -> tuple[list[int], float]:
    """One row with the documented formulas, each operation rounded to fp32."""
    peak, levels = max(row, key=abs), rule.levels  # the first one of largest magnitude
    if rule.full_range:
        scale = fp32(-peak / levels) or 1.0
        return [min(levels - 1, max(-levels, math.floor(fp32(fp32(w / scale) + 0.5)))) for w in row], scale
    scale = fp32(abs(peak) / levels) or 1.0
    return [min(levels, max(-levels, round(fp32(w / scale)))) for w in row], scale


def _restored(codes: NDArray[np.int8], scales: Floats) -> Floats:
    return codes.astype(np.float32) * scales[:, None]


@RULES
@given(weight=MATRICES)
def test_it_agrees_with_plain_python(rule: Rule, weight: Floats) -> None:
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
    codes, scales = A8(weight)
    assert codes.tobytes().hex(" ", 4) == "8040e00d 00000000 80010002 807f00c0"
    assert scales.tobytes().hex(" ", 4) == "000000bc 0000803f 0000803f 0000c0bc"  # -1/128, 1, 1, -3/128


def test_golden_full_range_of_four_bits() -> None:
    weight = np.array([[1.0, -0.5, 0.25, -1.0], [0, 0, 0, 0], [-8, 0.5, -0.5, 6.6]], np.float32)
    codes, scales = A4(weight)
    assert codes.tolist() == [[-8, 4, -2, 7], [0, 0, 0, 0], [-8, 1, 0, 7]]
    assert scales.tolist() == [-0.125, 1, 1]


def test_golden_symmetric() -> None:
    weight = np.array([[127.0, -0.5, 1.5, 2.5], [0, 0, 0, 0], [-254, 1, -3, 5], [0.5, 0.25, 0, -0.5]], np.float32)
    codes, scales = B8(weight)
    assert codes.tobytes().hex(" ", 4) == "7f000202 00000000 8100fe02 7f400081"
    assert scales.tobytes().hex(" ", 4) == "0000803f 0000803f 00000040 0402813b"  # 1, 1, 2, fp32(0.5/127)


@RULES
@given(weight=MATRICES)
def test_the_error_is_at_most_half_a_step(rule: Rule, weight: Floats) -> None:
    codes, scales = rule(weight)
    exact = weight.astype(np.float64)
    error = np.abs(codes.astype(np.float64) * scales[:, None].astype(np.float64) - exact)
    peak, step = np.abs(exact).max(axis=1, keepdims=True), np.abs(scales[:, None].astype(np.float64))
    # rule A has no code for the negated peak: values there are clipped by at most one step
    clipped = (exact / scales[:, None] > rule.levels - 0.5) & rule.full_range
    bound = np.where(clipped, step, step / 2) * (1 + 1e-5)
    assert (error <= np.where(peak < SMALLEST_EXACT, SMALLEST_EXACT, bound)).all()


@RULES
@given(weight=MATRICES)
def test_codes_and_scales_follow_the_rule(rule: Rule, weight: Floats) -> None:
    codes, scales = rule(weight)
    peaks = np.take_along_axis(weight, np.abs(weight).argmax(axis=1, keepdims=True), axis=1)[:, 0]
    assert np.isfinite(scales).all()
    assert (scales != 0).all()
    zero, exact = peaks == 0, np.abs(peaks) >= SMALLEST_EXACT
    assert_array_equal(scales[zero], 1)
    assert_array_equal(codes[zero], 0)
    if rule.full_range:
        assert_array_equal((np.float32(-rule.levels) * scales)[exact], peaks[exact])  # the peak is kept exactly
        assert_array_equal(codes.min(axis=1)[exact], -rule.levels)
        assert codes.max() < rule.levels
    else:
        assert (scales > 0).all()
        assert codes.min() >= -rule.levels
        assert_array_equal(np.abs(codes).max(axis=1)[exact], rule.levels)


@RULES
@given(weight=MATRICES)
def test_quantizing_again_changes_nothing(rule: Rule, weight: Floats) -> None:
    """Weights on the grid are stored exactly."""
    weight = np.where(np.abs(weight).max(axis=1, keepdims=True) < SMALLEST_EXACT, np.float32(0), weight)
    codes, scales = rule(weight)
    again, scales_again = rule(_restored(codes, scales))
    assert_array_equal(again, codes)
    np.testing.assert_allclose(scales_again, scales, rtol=0 if rule.full_range else 2**-23)


@RULES
@given(weight=MATRICES)
def test_rows_are_independent(rule: Rule, weight: Floats) -> None:
    codes, scales = rule(weight)
    for index in range(len(weight)):
        alone, scale = rule(weight[index : index + 1])
        assert_array_equal(alone[0], codes[index])
        assert_array_equal(scale, scales[index : index + 1])


@RULES
@given(weight=MATRICES)
def test_columns_can_be_encoded_separately_with_the_same_scales(rule: Rule, weight: Floats) -> None:
    codes, scales = rule(weight)
    code = full_range_codes if rule.full_range else symmetric_codes
    for column in range(weight.shape[1]):
        assert_array_equal(code(weight[:, column : column + 1], scales, rule.levels)[:, 0], codes[:, column])


@pytest.mark.parametrize("rule", [A8, A4])
@given(weight=ANY)
def test_full_range_codes_of_the_negated_weight_are_equal(rule: Rule, weight: Floats) -> None:
    codes, scales = rule(weight)
    mirrored, mirrored_scales = rule(-weight)
    some = np.abs(weight).max(axis=1) >= SMALLEST_EXACT
    assert_array_equal(mirrored, codes)
    assert_array_equal(mirrored_scales[some], -scales[some])
