"""The two rules by which the vendor's compiler rounds weights, to the bit.

Nobody outside the vendor knows what selects the rule, so it is read off a compiled file. `full_range_codes` and
`symmetric_codes` of axzoo.weights.scales follow the same rules, but can differ in ties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from axzoo.weights.scales import Codes, Floats

RuleName = Literal["A", "B"]
RULES: tuple[RuleName, ...] = ("A", "B")
BITS = {"s8": 8, "s4": 4}
"""The integer types, and the bits of a code."""

TIE = 2.0**-14
"""How far w / s may be from a tie, in codes, for another arithmetic to round it the other way: the error of three fp32
operations on numbers below 256."""

SMALLEST = np.float32(2.0**-118)
"""Rows whose largest magnitude is below this count as zeros: their scale, or its reciprocal, is not a normal number."""


@dataclass(frozen=True)
class Peaks:
    """The first entry of largest magnitude of each row [rows] fp32, and whether the row also has its negative, so that
    rule A leaves the sign of the scale open."""

    values: Floats
    ambiguous: NDArray[np.bool_]

    @property
    def known(self) -> NDArray[np.bool_]:
        """The rows that can be encoded; nobody knows how the compiler stores rows of zeros."""
        return np.asarray(np.abs(self.values) >= SMALLEST)


def peaks_of(weight: Floats) -> Peaks:
    """The peaks of weight [rows, columns] fp32, finite."""
    magnitudes = np.abs(weight)
    first = magnitudes.argmax(axis=1)[:, None]
    values = np.take_along_axis(weight, first, axis=1)
    return Peaks(values[:, 0], (weight == -values).any(axis=1) & (values[:, 0] != 0))


def scales_of(peaks: Floats, weight_type: str, rule: RuleName) -> Floats:
    """The scales [rows] fp32 for the `values` of peaks. Rule A: -peak / 2^(b-1), with a sign. Rule B: |peak| divided by
    the largest code."""
    levels = 1 << BITS[weight_type] - 1
    divisor = np.float32(-levels if rule == "A" else levels - 1)
    return np.divide(peaks if rule == "A" else np.abs(peaks), divisor, dtype=np.float32)


def codes_of(weight: Floats, scales: Floats, weight_type: str, rule: RuleName) -> Codes:
    """The codes [rows, columns] int8 of weight [rows, columns] fp32 for scales [rows], which are not 0.

    Rule A: floor(fma(w, 1 / s, 2^(b-1) + 0.5)) - 2^(b-1), with 1 / s rounded to fp32. Rule B: w / s in fp32, rounded
    to the nearest, ties to even.
    """
    levels = 1 << BITS[weight_type] - 1
    if rule == "B":
        steps = weight / scales[:, None]
        np.rint(steps, out=steps)
        lowest, highest = 1 - levels, levels - 1
    else:
        steps = fused(weight, (np.float32(1) / scales)[:, None], levels + 0.5)
        np.floor(steps, out=steps)
        steps -= np.float32(levels)
        lowest, highest = -levels, levels - 1
    return np.clip(steps, lowest, highest, out=steps).astype(np.int8)


_FP64_TAIL = np.uint64((1 << 29) - 1)
_MIDDLE = np.uint64(1 << 28)
"""The bits of an fp64 number below fp32's precision, and their value in the middle between two fp32 numbers."""


def fused(a: Floats, b: Floats, c: float) -> Floats:
    """a * b + c rounded once to fp32, where the sum is a normal number of fp32; a and b broadcast.

    In fp64 the product of fp32 numbers is exact, and the sum is rounded. Rounding it again gives another result only if
    the sum in fp64 is the middle between two fp32 numbers and the exact one is not.
    """
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c
    rounded = total.astype(np.float32)
    places = np.nonzero(total.view(np.uint64) & _FP64_TAIL == _MIDDLE)
    if places[0].size:
        p, t = product[places], total[places]
        part = t - p
        error = (p - (t - part)) + (c - part)  # exact sum - t, itself exact
        direction = np.where(error > 0, np.inf, -np.inf)
        rounded[places] = np.where(error == 0, t, np.nextafter(t, direction))
    return rounded


def near_ties(weight: Floats, scales: Floats) -> NDArray[np.bool_]:
    """Whether another arithmetic could round weight / scales to another code: bool [rows, columns]."""
    steps = weight.astype(np.float64) / scales[:, None].astype(np.float64)
    return np.asarray(np.abs(np.abs(steps - np.rint(steps)) - 0.5) <= TIE)
