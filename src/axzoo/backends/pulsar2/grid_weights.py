"""Weights from which the vendor's compiler computes given codes: chosen by GPTQ, for example.

The compiler rounds weights to the nearest code, and takes a row's scale from its largest weight. So fp32 weights that
lie exactly on a row's grid, one of them at its end, keep their codes. docs/vendor.md has the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from axzoo.backends.pulsar2.vendor_rules import BITS, RuleName, codes_of, peaks_of, scales_of
from axzoo.core.dtypes import NUMPY_DTYPES
from axzoo.core.errors import AxzooError
from axzoo.weights.encoding import ScaledFormat
from axzoo.weights.scales import Codes, Floats
from axzoo.weights.stored import StoredWeight

_DTYPES = {"s8": "int8", "s4": "int4"}


@dataclass(frozen=True)
class ChangedCode:
    """A code that was changed so that its row reaches the end of its grid: the weight was `old` times the given scale,
    and is `new` times it now. `distance` is the change of the weight, relative to the norm of the row."""

    row: int
    column: int
    old: int
    new: int
    distance: float


@dataclass(frozen=True)
class GridWeight:
    """A matrix [out_features, in_features] fp32 on the compiler's grid.

    `codes` int8 and `scales` [out_features] fp32 are what the compiler computes from `values`; a scale of rule B can
    be one unit in the last place away from the given one. `changes` are the codes that are not the given ones.
    """

    values: Floats
    codes: Codes
    scales: Floats
    changes: tuple[ChangedCode, ...]


def vendor_format(weight_type: str, rule: RuleName) -> ScaledFormat:
    """The format whose codes and scales are the compiler's, for integer types: `axzoo.calibrate.rounding` chooses codes
    for it that `grid_weight` need not change."""
    dtype = NUMPY_DTYPES[_DTYPES[weight_type]]
    return ScaledFormat(
        dtype,
        scales=partial(_row_scales, weight_type=weight_type, rule=rule),
        codes=partial(codes_of, weight_type=weight_type, rule=rule),
    )


def _row_scales(weight: Floats, weight_type: str, rule: RuleName) -> Floats:
    """The scales [rows] of weight [rows, columns]; 1 for rows of zeros."""
    peaks = peaks_of(weight)
    return np.where(peaks.known, scales_of(peaks.values, weight_type, rule), np.float32(1))


def grid_weight(role: str, stored: StoredWeight, weight_type: str, rule: RuleName) -> GridWeight:
    """Weights from which the compiler computes the codes of `stored`, which has one scale per row.

    The compiler gives the largest weight of a row the code -2^(b-1) (rule A) or +-(2^(b-1)-1) (rule B). Where no code
    of a row is that, the one that is closest to it is changed, or under rule A the closest to the other end, with the
    sign of the scale. Rows of zeros stay. Raises AxzooError, naming `role`, for other scales and for codes that are not
    integers.
    """
    if weight_type not in BITS or stored.values.dtype != NUMPY_DTYPES[_DTYPES[weight_type]]:
        raise AxzooError(f"{role} is not stored as s8 or s4 codes: the compiler chooses those of other types itself")
    if len(stored.scales) != 1:
        raise AxzooError(
            f"{role} has {len(stored.scales)} scales per row, and the compiler stores one: use groups of 0"
        )
    given: Codes = np.ascontiguousarray(stored.values.T).astype(np.int8)
    scales = stored.scales[0].copy()
    if not np.isfinite(scales).all() or (np.abs(scales) < 2.0**-100).any():
        raise AxzooError(f"{role} has a scale that is not a normal number")
    codes = given.astype(np.int16)
    levels = 1 << BITS[weight_type] - 1
    if rule == "A":
        _reach_end_of_a(codes, scales, levels)
    else:
        _reach_end_of_b(codes, levels - 1)
    values = codes * scales[:, None]
    peaks = peaks_of(values)
    own = np.where(peaks.known, scales_of(peaks.values, weight_type, rule), np.float32(1))
    computed = np.where(peaks.known[:, None], codes_of(values, own, weight_type, rule), np.int8(0))
    turned = np.signbit(own) != np.signbit(scales)
    expected = np.where(turned[:, None], -codes, codes)
    if (computed != expected).any():
        raise AxzooError(f"{role} has codes that the compiler does not keep: its scales are too small or too large")
    before = given * stored.scales[0][:, None]
    return GridWeight(values, computed, own, _changes(before, values, given, codes, stored.scales[0] != scales))


def _reach_end_of_a(codes: NDArray[np.int16], scales: Floats, levels: int) -> None:
    """Changes codes [rows, columns] and the sign of scales [rows] so that every row with a code other than 0 has the
    code -levels."""
    lowest, highest = codes.min(axis=1), codes.max(axis=1)
    turned = (lowest > -levels) & (highest > -lowest)
    codes[turned] *= -1
    scales[turned] *= -1
    short = (lowest > -levels) & ((lowest != 0) | (highest != 0))
    columns = codes.argmin(axis=1)
    codes[short, columns[short]] = -levels


def _reach_end_of_b(codes: NDArray[np.int16], highest: int) -> None:
    """Changes codes [rows, columns] so that they are at most +-highest, and every row with a code other than 0 has one
    of these."""
    np.clip(codes, -highest, highest, out=codes)
    columns = np.abs(codes).argmax(axis=1)
    rows = np.arange(len(codes))
    extreme = codes[rows, columns]
    codes[rows, columns] = np.sign(extreme) * highest


def _changes(
    before: Floats, values: Floats, given: Codes, codes: NDArray[np.int16], turned: NDArray[np.bool_]
) -> tuple[ChangedCode, ...]:
    """The codes that represent another weight than before. `turned` [rows]: the sign of the scale was changed."""
    new = np.where(turned[:, None], -codes, codes)
    norms = np.sqrt(np.square(before, dtype=np.float64).sum(axis=1))
    places = zip(*(index.tolist() for index in np.nonzero(new != given)), strict=True)
    return tuple(
        ChangedCode(
            row,
            column,
            int(given[row, column]),
            int(new[row, column]),
            abs(float(values[row, column]) - float(before[row, column])) / float(norms[row]),
        )
        for row, column in places
    )
