"""Encoders: how a weight matrix becomes values and scales, by the names recipes use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from axzoo.core.dtypes import NUMPY_DTYPES
from axzoo.weights.recipe import PostWeightType, Recipe
from axzoo.weights.scales import (
    Floats,
    full_range_codes,
    full_range_scales,
    least_squares_scales,
    symmetric_codes,
    symmetric_scales,
)


def float8_codes(weight: Floats, scales: Floats, dtype: np.dtype[Any]) -> NDArray[Any]:
    """weight [rows, columns] / scales [rows], rounded to nearest even in float8 `dtype`, beyond its range saturated."""
    largest = largest_of(dtype)
    codes: NDArray[Any] = np.clip(weight / scales[:, None], -largest, largest).astype(dtype)
    return codes


def largest_of(dtype: np.dtype[Any]) -> float:
    """448 for e4m3, 57344 for e5m2."""
    return float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]


_INTEGERS = {"s8": (NUMPY_DTYPES["int8"], 128), "s4": (NUMPY_DTYPES["int4"], 8)}
"""Dtype and levels below zero."""


class FormatError(ValueError):
    """A format that does not serve a weight; says why and what to choose."""


class WeightFormat(Protocol):
    """How a weight matrix becomes values and scales."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def groups(self, columns: int, /) -> int:
        """Scales to a row. Raises FormatError when the groups do not divide it."""
        ...

    def encode(self, weight: Floats) -> tuple[NDArray[Any], Floats]:
        """weight [rows, columns] -> values [rows, columns], scales [rows, groups]."""
        ...


@dataclass(frozen=True)
class FloatFormat:
    """Weights rounded to a float type."""

    name: str

    @property
    def dtype(self) -> np.dtype[Any]:
        return NUMPY_DTYPES[self.name]

    def groups(self, _columns: int) -> int:
        """Scales to a row: none."""
        return 0

    def encode(self, weight: Floats) -> tuple[NDArray[Any], Floats]:
        """weight [rows, columns] -> values [rows, columns], scales [rows, 0].

        Raises FormatError when a weight is beyond the type's range.
        """
        with np.errstate(over="ignore"):
            values = weight.astype(self.dtype)
        if not np.isfinite(values.astype(np.float32)).all():
            raise FormatError(f"a weight of magnitude {np.abs(weight).max():g} is beyond {self.name}: use fp32")
        return values, np.empty((len(weight), 0), np.float32)


@dataclass(frozen=True)
class ScaledFormat:
    """Codes of eight bits or fewer under one scale per row, or per `group_size` columns of it (0: the row).

    `scales` gives the scales [rows] of weights [rows, columns], `codes` the codes [rows, columns] of weights under
    given scales [rows]. A group is to them a row of its own.
    """

    dtype: np.dtype[Any]
    scales: Callable[[Floats], Floats]
    codes: Callable[[Floats, Floats], NDArray[Any]]
    group_size: int = 0

    def groups(self, columns: int) -> int:
        """Scales to a row. Raises FormatError when the groups do not divide it."""
        if self.group_size == 0:
            return 1
        if columns % self.group_size:
            raise FormatError(
                f"weight_group_size {self.group_size} does not divide its {columns} input features: "
                "choose another, or 0 for one scale per row"
            )
        return columns // self.group_size

    def encode(self, weight: Floats) -> tuple[NDArray[Any], Floats]:
        """weight [rows, columns] -> values [rows, columns], scales [rows, groups]."""
        rows, columns = weight.shape
        groups = weight.reshape(rows * self.groups(columns), -1)
        scales = self.scales(groups)
        return self.codes(groups, scales).view(self.dtype).reshape(rows, columns), scales.reshape(rows, -1)


def layer_format(recipe: Recipe) -> WeightFormat:
    """How decoder layers store their weights: a float type, or integers by the vendor's rule A."""
    if recipe.weight_type not in _INTEGERS:
        return FloatFormat(recipe.weight_type)
    dtype, levels = _INTEGERS[recipe.weight_type]
    rule = {"vendor": full_range_scales, "mse": least_squares_scales}[recipe.scale_rule]
    return ScaledFormat(
        dtype=dtype,
        scales=partial(rule, levels=levels),
        codes=partial(full_range_codes, levels=levels),
        group_size=recipe.weight_group_size,
    )


def post_format(weight_type: PostWeightType) -> WeightFormat:
    """How the post layer stores lm_head: a float type, s8 by the vendor's rule B, or fp8 likewise scaled."""
    if weight_type == "s8":
        dtype = NUMPY_DTYPES["int8"]
        return ScaledFormat(dtype, partial(symmetric_scales, largest=127), partial(symmetric_codes, largest=127))
    if weight_type in ("fp8_e4m3", "fp8_e5m2"):
        dtype = NUMPY_DTYPES[weight_type]
        scales = partial(symmetric_scales, largest=largest_of(dtype))
        return ScaledFormat(dtype, scales, partial(float8_codes, dtype=dtype))
    return FloatFormat(weight_type)
