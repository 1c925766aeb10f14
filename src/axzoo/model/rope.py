"""Rotary position embedding: angular frequencies and tables, as Hugging Face's models define them.

Frequencies are computed in double precision and rounded once to fp32, so that every platform gives the same numbers.

Two kinds, dynamic and longrope, change their frequencies when a sequence outgrows the length the model was trained on.
A file's tables are fixed, so they are made for the longest sequence the file can hold: what Hugging Face's models
compute for a sequence of that length.
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

_ORIGINAL = "original_max_position_embeddings"
_REQUIRED: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor", _ORIGINAL},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", _ORIGINAL},
    "yarn": {"factor", _ORIGINAL},
    "longrope": {"short_factor", "long_factor", "factor", _ORIGINAL},
}
_OPTIONAL: dict[str, set[str]] = {
    "yarn": {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    "longrope": {"attention_factor"},
}
ROPE_TYPES = tuple(_REQUIRED)
"""Every kind of scaling axzoo computes; default is none."""

_MAX_DIM = 1 << 16
"""No model is near it; a config that says more would only fill the memory."""

_LISTS = {"short_factor", "long_factor"}


def make_rope(
    rotary_dim: int, theta: float, scaling: Mapping[str, Any], max_position_embeddings: int, interleaved: bool = False
) -> RopeSpec:
    """The spec of `rotary_dim` rotated dimensions per head.

    `scaling` holds `rope_type` and its parameters. As in transformers, the trained length defaults to
    `max_position_embeddings`, and always is that for dynamic; a longrope's factor defaults to the ratio of the two.
    Raises AxzooError for a type axzoo does not know, and for missing, superfluous or meaningless parameters.
    """
    kind = "longrope" if scaling["rope_type"] == "su" else scaling["rope_type"]
    if not isinstance(kind, str) or kind not in _REQUIRED:
        raise AxzooError(f"rope_type {kind!r} is not supported; supported are: {', '.join(_REQUIRED)}")
    values = {key: value for key, value in scaling.items() if key != "rope_type" and value is not None}
    if _ORIGINAL in _REQUIRED[kind]:
        values.setdefault(_ORIGINAL, max_position_embeddings)
    if kind == "dynamic":
        values[_ORIGINAL] = max_position_embeddings
    if kind == "longrope":
        values.setdefault("factor", max_position_embeddings / _number(values, _ORIGINAL))
    known = _REQUIRED[kind] | _OPTIONAL.get(kind, set())
    if not _REQUIRED[kind] <= set(values) <= known:
        raise AxzooError(
            f"rope_type {kind!r} takes the parameters {sorted(known)}, but the config has {sorted(values)}"
        )
    if rotary_dim < 2 or rotary_dim % 2 or rotary_dim > _MAX_DIM:
        raise AxzooError(f"rotary embedding takes an even number of 2 to {_MAX_DIM} dimensions, not {rotary_dim}")
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
    frequencies(rope, max_position_embeddings)  # raises where the parameters, each plausible, make no sense together
    return rope


def reach(rope: RopeSpec, max_position_embeddings: int) -> int:
    """Positions a model with this rope is good for, where config.json gives it max_position_embeddings.

    With dynamic that is the trained length, and with yarn it may be; both go `factor` times beyond. With the others it
    is the stretched length, as far as anyone can know.
    """
    if rope.scaling["rope_type"] not in ("dynamic", "yarn"):
        return max_position_embeddings
    return max(max_position_embeddings, int(rope.scaling[_ORIGINAL] * rope.scaling["factor"]))


def frequencies(rope: RopeSpec, positions: int) -> tuple[NDArray[np.float32], float]:
    """Radians per position [rotary_dim / 2] fp32 and the factor of cos and sin, for sequences of up to `positions`.

    Raises AxzooError when they, or the angles of so many positions, are not positive and finite in fp32.
    """
    try:
        with np.errstate(all="ignore"):
            inv_freq, factor = _scaled_frequencies(rope, positions)
            rounded = inv_freq.astype(np.float32)
            extremes = np.array([*rounded, rounded.max() * positions, factor], np.float32)
            sound = bool(((extremes > 0) & np.isfinite(extremes)).all())
    except (ArithmeticError, ValueError):  # of math's functions: a division by zero, a logarithm of nothing
        sound = False
    if not sound:
        raise AxzooError(
            f"rope_theta {rope.theta} with {rope.scaling} gives no positive, finite frequencies: the config is wrong"
        )
    return rounded, factor


def _scaled_frequencies(rope: RopeSpec, positions: int) -> tuple[Frequencies, float]:
    scaling = rope.scaling
    inv_freq = _powers(rope.theta, rope.rotary_dim)
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

    The angle is the fp32 product Hugging Face's models form; its cosine is taken in double precision.
    """
    inv_freq, factor = frequencies(rope, positions)
    angles = (np.arange(positions, dtype=np.float32)[:, None] * inv_freq).astype(np.float64)
    return (np.cos(angles) * factor).astype(np.float32), (np.sin(angles) * factor).astype(np.float32)


def _powers(theta: float, rotary_dim: int) -> Frequencies:
    return theta ** -(np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)


def _dynamic(rope: RopeSpec, positions: int) -> Frequencies:
    """NTK-aware: the base grows with the length beyond the trained one."""
    factor, dim = rope.scaling["factor"], rope.rotary_dim
    length = max(positions, rope.scaling[_ORIGINAL])
    grown = factor * length / rope.scaling[_ORIGINAL] - (factor - 1)
    return _powers(rope.theta * grown ** (dim / (dim - 2)), dim)


def _llama3(inv_freq: Frequencies, scaling: Mapping[str, Any]) -> Frequencies:
    """Llama 3.1: long wavelengths slowed by `factor`, short ones kept, a linear blend between."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling[_ORIGINAL] * inv_freq / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0, 1)
    scaled: Frequencies = (1 - blend) * inv_freq / scaling["factor"] + blend * inv_freq
    return scaled


def _yarn(rope: RopeSpec, inv_freq: Frequencies) -> tuple[Frequencies, float]:
    """YaRN (Peng et al., 2023): dimensions that turn often are kept, slow ones interpolated, a ramp between."""
    scaling, dim = rope.scaling, rope.rotary_dim

    def dimension_turning(turns: float) -> float:
        return dim * math.log(scaling[_ORIGINAL] / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = dimension_turning(scaling.get("beta_fast", 32))
    high = dimension_turning(scaling.get("beta_slow", 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low or 0.001), 0, 1)
    factor = scaling["factor"]
    mixed: Frequencies = inv_freq / factor * ramp + inv_freq * (1 - ramp)
    if "attention_factor" in scaling:
        return mixed, float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return mixed, _yarn_scale(factor, scaling["mscale"]) / _yarn_scale(factor, scaling["mscale_all_dim"])
    return mixed, _yarn_scale(factor, 1.0)


def _yarn_scale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(inv_freq: Frequencies, scaling: Mapping[str, Any], positions: int) -> tuple[Frequencies, float]:
    """LongRoPE (Ding et al., 2024): one searched factor per dimension, another set beyond the trained length."""
    trained, factor = scaling[_ORIGINAL], scaling["factor"]
    stretch = scaling["long_factor"] if positions > trained else scaling["short_factor"]
    attention_factor = scaling.get("attention_factor")
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    return inv_freq / np.asarray(stretch, np.float64), float(attention_factor)


def is_positive_number(value: Any) -> bool:
    """Whether a value out of a config is a number that fp64 holds, above zero (true and false are none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _number(values: Mapping[str, Any], key: str) -> float:
    value = values[key]
    if not is_positive_number(value):
        raise AxzooError(f"rope parameter {key} is {value!r}, but must be a positive number")
    return float(value)


def _check_factors(key: str, value: Any, length: int) -> None:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != length or not all(map(is_positive_number, numbers)):
        raise AxzooError(f"rope parameter {key} must be a list of {length} positive numbers")
