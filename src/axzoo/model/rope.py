"""Rotary position embedding: frequencies and cos/sin tables, as defined by the Hugging Face models.

Frequencies are computed in double precision and rounded once to fp32, so every platform gets the same numbers.

Two types, dynamic and longrope, change their frequencies once a sequence is longer than the training length. The
tables in a compiled file are fixed, so they are computed for the longest sequence the file can hold.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.core.errors import AxzooError
from axzoo.model.spec import RopeSpec

Frequencies = NDArray[np.float64]

ORIGINAL = "original_max_position_embeddings"
"""The parameter with the training length in tokens."""

REQUIRED: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor", ORIGINAL},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", ORIGINAL},
    "yarn": {"factor", ORIGINAL},
    "longrope": {"short_factor", "long_factor", "factor", ORIGINAL},
}
OPTIONAL: dict[str, set[str]] = {
    "yarn": {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    "longrope": {"attention_factor"},
}
"""The parameters of each rope type."""

ROPE_TYPES = tuple(REQUIRED)
"""The supported rope types; "default" is unscaled."""

_MAX_DIM = 1 << 16
"""Far above any real model; larger values in a config would only exhaust memory."""

LOWEST_NUMBER, HIGHEST_NUMBER = 1e-30, 1e30
"""Numbers of a config outside this range are damaged. Within it, fp32 has room for products with other numbers."""
HIGHEST_THETA = 1e15
"""The largest published rope_theta is below 1e12."""
_HIGHEST_LENGTH = (1 << 31) - 1
"""The other parameters need no range: `frequencies` refuses all that gives numbers outside the range of fp32."""

_LISTS = {"short_factor", "long_factor"}


def make_rope(
    rotary_dim: int, theta: float, scaling: Mapping[str, Any], max_position_embeddings: int, interleaved: bool = False
) -> RopeSpec:
    """The spec of a rotary embedding with `rotary_dim` rotated dimensions per head.

    `scaling` holds `rope_type` and its parameters. As in transformers, original_max_position_embeddings defaults to
    `max_position_embeddings` (dynamic always uses the latter), and the factor of longrope to the ratio of the two.
    Raises AxzooError for an unsupported type, and for missing, unknown or invalid parameters.
    """
    kind = "longrope" if scaling["rope_type"] == "su" else scaling["rope_type"]
    if not isinstance(kind, str) or kind not in REQUIRED:
        raise AxzooError(f"rope_type {kind!r} is not supported; supported are: {', '.join(REQUIRED)}")
    values = {key: value for key, value in scaling.items() if key != "rope_type" and value is not None}
    if ORIGINAL in REQUIRED[kind]:
        values.setdefault(ORIGINAL, max_position_embeddings)
    if kind == "dynamic":
        values[ORIGINAL] = max_position_embeddings
    if kind == "longrope":
        values.setdefault("factor", max_position_embeddings / _number(values, ORIGINAL))
    known = REQUIRED[kind] | OPTIONAL.get(kind, set())
    if not REQUIRED[kind] <= set(values) <= known:
        raise AxzooError(
            f"rope_type {kind!r} takes the parameters {sorted(known)}, but the config has {sorted(values)}"
        )
    if rotary_dim < 2 or rotary_dim % 2 or rotary_dim > _MAX_DIM:
        raise AxzooError(f"rotary embedding needs an even number of dimensions from 2 to {_MAX_DIM}, not {rotary_dim}")
    for key in values:
        if key in _LISTS:
            _check_factors(key, values[key], rotary_dim // 2)
        elif key != "truncate":
            _number(values, key)
        elif not isinstance(values[key], bool):
            raise AxzooError(f"rope parameter {key} is {values[key]!r}, but must be true or false")
    if kind == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
        raise AxzooError(
            f"rope's high_freq_factor {values['high_freq_factor']} must be above "
            f"low_freq_factor {values['low_freq_factor']}"
        )
    rope = RopeSpec(theta, rotary_dim, interleaved, {"rope_type": kind, **values})
    frequencies(rope, max_position_embeddings)  # raises if the combination of parameters is invalid
    return rope


def frequencies(rope: RopeSpec, positions: int) -> tuple[NDArray[np.float32], float]:
    """Radians per position [rotary_dim / 2] fp32, and the factor of cos and sin, for sequences of up to `positions`.

    Raises AxzooError when the frequencies, or the angles at `positions`, are not positive and finite in fp32.
    """
    try:
        with np.errstate(all="ignore"):
            inv_freq, factor = _scaled_frequencies(rope, positions)
            rounded = inv_freq.astype(np.float32)
            extremes = np.array([*rounded, rounded.max() * positions, factor], np.float32)
            valid = bool(((extremes > 0) & np.isfinite(extremes)).all())
    except (ArithmeticError, ValueError):  # from the math module: division by zero, logarithm of 0
        valid = False
    if not valid:
        raise AxzooError(
            f"rope_theta {rope.theta} with {rope.scaling} gives frequencies that are not positive and finite: "
            "the config is wrong"
        )
    return rounded, factor


def _scaled_frequencies(rope: RopeSpec, positions: int) -> tuple[Frequencies, float]:
    scaling = rope.scaling
    inv_freq = _default_frequencies(rope.theta, rope.rotary_dim)
    match scaling["rope_type"]:
        case "default":
            return inv_freq, 1.0
        case "linear":
            return inv_freq / scaling["factor"], 1.0
        case "dynamic":
            return _dynamic(rope, positions), 1.0
        case "llama3":
            return _llama3(inv_freq, scaling), 1.0
        case "yarn":
            return _yarn(rope, inv_freq)
        case "longrope":
            return _longrope(inv_freq, scaling, positions)
    raise AxzooError(f"rope_type {scaling['rope_type']!r} is not supported; supported are: {', '.join(ROPE_TYPES)}")


def rope_tables(rope: RopeSpec, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin of every angle: two arrays [positions, rotary_dim / 2] fp32.

    The angle is the fp32 product that the Hugging Face models compute; cos and sin are taken in double precision.
    """
    inv_freq, factor = frequencies(rope, positions)
    angles = (np.arange(positions, dtype=np.float32)[:, None] * inv_freq).astype(np.float64)
    return (np.cos(angles) * factor).astype(np.float32), (np.sin(angles) * factor).astype(np.float32)


def _default_frequencies(theta: float, rotary_dim: int) -> Frequencies:
    return theta ** -(np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)


def _dynamic(rope: RopeSpec, positions: int) -> Frequencies:
    """Dynamic NTK scaling: the base grows once the length exceeds the training length."""
    factor, dim = rope.scaling["factor"], rope.rotary_dim
    length = max(positions, rope.scaling[ORIGINAL])
    growth = factor * length / rope.scaling[ORIGINAL] - (factor - 1)
    return _default_frequencies(rope.theta * growth ** (dim / (dim - 2)), dim)


def _llama3(inv_freq: Frequencies, scaling: Mapping[str, Any]) -> Frequencies:
    """Llama 3.1: long wavelengths are divided by `factor`, short ones kept, with a linear blend in between."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    rotations = scaling[ORIGINAL] * inv_freq / (2 * math.pi)
    blend = np.clip((rotations - low) / (high - low), 0, 1)
    scaled: Frequencies = (1 - blend) * inv_freq / scaling["factor"] + blend * inv_freq
    return scaled


def _yarn(rope: RopeSpec, inv_freq: Frequencies) -> tuple[Frequencies, float]:
    """YaRN (Peng et al., 2023): high frequencies are kept, low ones interpolated, with a linear ramp in between."""
    scaling, dim = rope.scaling, rope.rotary_dim

    def correction_dim(rotations: float) -> float:
        return dim * math.log(scaling[ORIGINAL] / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = correction_dim(scaling.get("beta_fast", 32))
    high = correction_dim(scaling.get("beta_slow", 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low or 0.001), 0, 1)
    factor = scaling["factor"]
    blended: Frequencies = inv_freq / factor * ramp + inv_freq * (1 - ramp)
    if "attention_factor" in scaling:
        return blended, float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return blended, _yarn_scale(factor, scaling["mscale"]) / _yarn_scale(factor, scaling["mscale_all_dim"])
    return blended, _yarn_scale(factor, 1.0)


def _yarn_scale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(inv_freq: Frequencies, scaling: Mapping[str, Any], positions: int) -> tuple[Frequencies, float]:
    """LongRoPE (Ding et al., 2024): one factor per dimension, with a second set beyond the training length."""
    trained, factor = scaling[ORIGINAL], scaling["factor"]
    stretch = scaling["long_factor"] if positions > trained else scaling["short_factor"]
    attention_factor = scaling.get("attention_factor")
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    return inv_freq / np.asarray(stretch, np.float64), float(attention_factor)


def is_positive_number(value: Any) -> bool:
    """Whether a value from a config is a number above 0 that fits in fp64; booleans are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _number(values: Mapping[str, Any], key: str) -> float:
    value = values[key]
    if not is_positive_number(value):
        raise AxzooError(f"rope parameter {key} is {value!r}, but must be a positive number")
    if key == ORIGINAL and value > _HIGHEST_LENGTH:
        raise AxzooError(f"rope parameter {key} is {value!r}, but must be at most {_HIGHEST_LENGTH}")
    return float(value)


def _check_factors(key: str, value: Any, length: int) -> None:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != length or not all(map(is_positive_number, numbers)):
        raise AxzooError(f"rope parameter {key} must be a list of {length} positive numbers")
