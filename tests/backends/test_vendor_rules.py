"""The vendor's rounding rules: to the bit, against exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import table_writer
from hypothesis import given
from hypothesis import strategies as st

from axzoo.backends.pulsar2.vendor_rules import RULES, codes_of, fused, near_ties, peaks_of, scales_of


def _nearest(exact: Fraction) -> np.float32:
    """The fp32 number nearest to an exact one; of two, the one whose last bit is 0."""
    guess = np.float32(float(exact))
    near = [guess, *(np.nextafter(guess, np.float32(end)) for end in (-np.inf, np.inf))]
    return min(near, key=lambda value: (abs(Fraction(float(value)) - exact), int(value.view(np.uint32)) & 1))


def _sum(a: np.float32, b: np.float32, c: float) -> Fraction:
    return Fraction(float(a)) * Fraction(float(b)) + Fraction(c)


MIDDLES = [(9470693, 14860089, 48), (11506049, 6115711, 47), (8511266, 16535183, 48), (9958295, 10599463, 46)]
"""Factors a and b, and an exponent e: a * b / 2^e + 128.5 is less than 2^-46 away from the middle between an integer
and the fp32 number below it, and in fp64 it is that middle. No sum with 8.5 (s4) has this problem: fp64 holds those
that are close to an integer exactly."""


def test_sums_that_look_like_a_middle_in_fp64() -> None:
    """Here rounding twice differs from rounding once, and so does the code."""
    a = np.array([a * 2.0**-24 for a, _, _ in MIDDLES], np.float32)
    b = np.array([b * 2.0 ** (24 - e) for _, b, e in MIDDLES], np.float32)
    right = [_nearest(_sum(*pair, 128.5)) for pair in zip(a, b, strict=True)]
    twice = (a.astype(np.float64) * b + 128.5).astype(np.float32)
    assert np.floor(right).tolist() == [128, 128, 128, 130]
    assert np.floor(twice).tolist() == [129, 129, 129, 130]
    assert fused(a, b, 128.5).tolist() == right


_FLOATS = st.floats(2.0**-20, 2.0**20, width=32) | st.floats(-(2.0**20), -(2.0**-20), width=32)


@given(_FLOATS, _FLOATS, st.sampled_from([8.5, 128.5]))
def test_a_fused_operation_rounds_once(a: float, b: float, c: float) -> None:
    exact = _sum(np.float32(a), np.float32(b), c)
    if abs(exact) > Fraction(1, 1 << 20):
        assert fused(np.array([a], np.float32), np.array([b], np.float32), c)[0] == _nearest(exact)


@pytest.mark.parametrize("kind", ["s8", "s4"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [np.float32, "bfloat16"])
def test_codes_of_random_rows(kind: str, rule: str, dtype: object) -> None:
    """Against the writer's code, which is written row by row in another arithmetic; bf16 rows have many ties."""
    import ml_dtypes

    weight = np.random.default_rng(3).standard_normal((300, 200)).astype(np.float32)
    if dtype == "bfloat16":
        weight = weight.astype(ml_dtypes.bfloat16).astype(np.float32)
    scales = scales_of(peaks_of(weight).values, kind, rule)  # type: ignore[arg-type]
    codes = codes_of(weight, scales, kind, rule)  # type: ignore[arg-type]
    assert scales.dtype == np.float32
    assert scales.tolist() == [table_writer.row_scale(row, kind, rule) for row in weight]
    expected = [table_writer.row_codes(row, scale, kind, rule) for row, scale in zip(weight, scales, strict=True)]
    assert codes.tolist() == expected


def test_the_largest_weight_has_the_extreme_code() -> None:
    weight = np.array([[1.0, -4.0, 3.0], [0.5, 0.26, -0.125]], np.float32)
    peaks = peaks_of(weight)
    assert scales_of(peaks.values, "s4", "A").tolist() == [0.5, -0.0625]
    assert scales_of(peaks.values, "s4", "B").tolist() == (np.float32([4, 0.5]) / np.float32(7)).tolist()
    assert codes_of(weight, scales_of(peaks.values, "s4", "A"), "s4", "A").tolist() == [[2, -8, 6], [-8, -4, 2]]
    assert codes_of(weight, scales_of(peaks.values, "s4", "B"), "s4", "B").tolist() == [[2, -7, 5], [7, 4, -2]]


def test_a_row_with_both_signs_of_its_peak_is_ambiguous() -> None:
    weight = np.array([[1, -2, 2], [1, 2, 2], [0, 0, 0], [-2, 1, 1]], np.float32)
    peaks = peaks_of(weight)
    assert peaks.ambiguous.tolist() == [True, False, False, False]
    assert peaks.known.tolist() == [True, True, False, True]
    assert peaks.values.tolist() == [-2, 2, 0, -2]


def test_ties_are_recognized() -> None:
    scales = np.array([0.1], np.float32)
    steps = np.array([[0.5, 1.4999, 1.49999999, -2.5, 3.0, 126.5]])
    weight = (steps * np.float64(scales[0])).astype(np.float32)
    assert near_ties(weight, scales).tolist() == [[True, False, True, True, False, True]]
