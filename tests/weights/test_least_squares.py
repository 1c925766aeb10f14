"""Searched scales are never worse than the vendor's, and almost as good as those of an exhaustive search."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from matrices import MATRICES, fp32
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from axzoo.weights.scales import FACTORS, REFINEMENTS, full_range_codes, full_range_scales, least_squares_scales

Floats = NDArray[np.float32]
LEVELS = pytest.mark.parametrize("levels", [8, 128])

SMALLEST_EXACT = 256 * 2.0**-126
"""Below this peak the scale is denormal, and the search guarantees nothing."""


def _errors(weight: Floats, scales: Floats, levels: int) -> NDArray[np.float64]:
    """The squared error of each row, relative to its peak."""
    peak = np.maximum(np.abs(weight).max(axis=1, keepdims=True), np.float32(2.0**-149)).astype(np.float64)
    restored = full_range_codes(weight, scales, levels).astype(np.float64) * scales[:, None].astype(np.float64)
    return np.asarray((((restored - weight) / peak) ** 2).sum(axis=1))


@LEVELS
@given(weight=MATRICES)
def test_never_worse_than_the_vendors(levels: int, weight: Floats) -> None:
    weight = np.where(np.abs(weight).max(axis=1, keepdims=True) < SMALLEST_EXACT, np.float32(0), weight)
    searched = least_squares_scales(weight, levels)
    assert (searched.dtype.type, searched.shape) == (np.float32, weight.shape[:1])
    vendors = full_range_scales(weight, levels)
    slack = 1e-6 / levels**2  # of rounding the error's sum to fp32
    assert (_errors(weight, searched, levels) <= _errors(weight, vendors, levels) * (1 + 1e-5) + slack).all()


@LEVELS
@given(weight=MATRICES)
def test_any_row_gets_a_scale(levels: int, weight: Floats) -> None:
    scales = least_squares_scales(weight, levels)
    assert np.isfinite(scales).all()
    assert (scales != 0).all()
    assert_array_equal(scales[~weight.any(axis=1)], 1)
    for index in range(len(weight)):
        assert_array_equal(least_squares_scales(weight[index : index + 1], levels), scales[index : index + 1])


@LEVELS
def test_weights_on_the_grid_are_exact(levels: int) -> None:
    codes = np.random.default_rng(0).integers(-levels, levels, (7, 50)).astype(np.int8)
    codes[:, 3] = -levels
    weight = codes * np.float32(-0.25)
    scales = least_squares_scales(weight, levels)
    assert_array_equal(scales, -0.25)
    assert_array_equal(full_range_codes(weight, scales, levels), codes)


def _plain(row: list[float], levels: int) -> float:
    """The scale of one row, found by the documented search in double precision."""
    vendor = fp32(-max(row, key=abs) / levels)
    steps = [w / vendor for w in row]

    def codes(factor: float) -> list[int]:
        return [min(levels - 1, max(-levels, math.floor(s / factor + 0.5))) for s in steps]

    def error(factor: float) -> float:
        return sum((q * factor - s) ** 2 for q, s in zip(codes(factor), steps, strict=True))

    best = min((float(factor) for factor in FACTORS), key=error)
    for _ in range(REFINEMENTS):
        chosen = codes(best)
        fitted = sum(q * s for q, s in zip(chosen, steps, strict=True)) / sum(q * q for q in chosen)
        best = min((best, fitted), key=error)
    return vendor * best


@LEVELS
def test_it_agrees_with_plain_python(levels: int) -> None:
    weight = np.random.default_rng(1).standard_t(3, (40, 33)).astype(np.float32)
    expected = np.array([_plain(row, levels) for row in weight.tolist()])
    np.testing.assert_allclose(least_squares_scales(weight, levels), expected, rtol=1e-5)


def test_close_to_the_optimum() -> None:
    """A search that is a hundred times finer gains little."""
    weight = np.random.default_rng(2).standard_t(5, (60, 128)).astype(np.float32)
    vendors = full_range_scales(weight, 8)
    found = _errors(weight, least_squares_scales(weight, 8), 8)
    factors = np.linspace(0.3, 1, 900).astype(np.float32)
    best = np.min([_errors(weight, vendors * sign * f, 8) for f in factors for sign in (1, -1)], axis=0)
    vendor = _errors(weight, vendors, 8)
    assert found.sum() < 0.9 * vendor.sum()
    assert found.sum() < 1.02 * best.sum()


def test_the_sign_is_searched_too() -> None:
    """With one peak and many values of opposite sign, the latter get the code that exists with one sign only."""
    weight = np.array([[8.01, *[-8.0] * 30]], np.float32)
    assert least_squares_scales(weight, 8)[0] == pytest.approx(1, rel=0.01)
    assert full_range_scales(weight, 8)[0] < 0
