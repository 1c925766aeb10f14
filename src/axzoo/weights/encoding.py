"""Encoders that turn a weight matrix into stored values and scales, by the format names used in recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
    """weight [rows, columns] / scales [rows], rounded to nearest even in float8 `dtype`, saturating at its range."""
    limit = float8_max(dtype)
    codes: NDArray[Any] = np.clip(weight / scales[:, None], -limit, limit).astype(dtype)
    return codes


def float8_max(dtype: np.dtype[Any]) -> float:
    """The largest finite number: 448 for e4m3, 57344 for e5m2."""
    return float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]


_INTEGERS = {"s8": (NUMPY_DTYPES["int8"], 128), "s4": (NUMPY_DTYPES["int4"], 8)}
"""Dtype, and the number of negative levels."""


class FormatError(ValueError):
    """A format that cannot store a weight. The message says why, and what to choose instead."""


class WeightFormat(Protocol):
    """Turns a weight matrix into stored values and scales."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def groups(self, columns: int, /) -> int:
        """Scales per row. Raises FormatError when the group size does not divide `columns`."""
        ...

    def encode(self, weight: Floats) -> tuple[NDArray[Any], Floats]:
        """weight [rows, columns] -> values [rows, columns], scales [rows, groups]."""
        ...


@dataclass(frozen=True)
class FloatFormat:
    """Weights rounded to a float type, without scales."""

    name: str

    @property
    def dtype(self) -> np.dtype[Any]:
        return NUMPY_DTYPES[self.name]

    def groups(self, _columns: int) -> int:
        """Scales per row: 0."""
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
    """Codes of at most eight bits, with one scale per row or per `group_size` columns of a row (0: the whole row).

    `scales` computes the scales [rows] of weights [rows, columns], and `codes` the codes [rows, columns] of weights for
    given scales [rows]. Both are called with one row per group.
    """

    dtype: np.dtype[Any]
    scales: Callable[[Floats], Floats]
    codes: Callable[[Floats, Floats], NDArray[Any]]
    group_size: int = 0

    def groups(self, columns: int) -> int:
        """Scales per row. Raises FormatError when the group size does not divide `columns`."""
        if self.group_size == 0:
            return 1
        if columns % self.group_size:
            raise FormatError(
                f"weight_group_size {self.group_size} does not divide its {columns} input features: "
                "choose another size, or 0 for one scale per row"
            )
        return columns // self.group_size

    def encode(self, weight: Floats) -> tuple[NDArray[Any], Floats]:
        """weight [rows, columns] -> values [rows, columns], scales [rows, groups]."""
        rows, columns = weight.shape
        groups = weight.reshape(rows * self.groups(columns), -1)
        scales = self.scales(groups)
        return self.codes(groups, scales).view(self.dtype).reshape(rows, columns), scales.reshape(rows, -1)


def layer_format(recipe: Recipe) -> WeightFormat:
    """The weight format of decoder layers: a float type, or integers with rule A."""
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


def vision_format(recipe: Recipe, columns: int) -> WeightFormat:
    """The weight format of a vision matrix with `columns` input features: that of decoder layers, with one scale per
    row where the group size does not divide them."""
    divides = not recipe.weight_group_size or columns % recipe.weight_group_size == 0
    return layer_format(recipe if divides else replace(recipe, weight_group_size=0))


def post_format(weight_type: PostWeightType) -> WeightFormat:
    """The weight format of lm_head in the post layer: a float type, or s8 or fp8 with the scales of rule B."""
    if weight_type == "s8":
        dtype = NUMPY_DTYPES["int8"]
        return ScaledFormat(dtype, partial(symmetric_scales, max_code=127), partial(symmetric_codes, max_code=127))
    if weight_type in ("fp8_e4m3", "fp8_e5m2"):
        dtype = NUMPY_DTYPES[weight_type]
        scales = partial(symmetric_scales, max_code=float8_max(dtype))
        return ScaledFormat(dtype, scales, partial(float8_codes, dtype=dtype))
    return FloatFormat(weight_type)
