"""Angular frequencies of rotary position embedding, as Hugging Face's models define them.

All is computed in double precision and rounded once to fp32, so that every platform gives the same numbers.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.errors import AxzooError
from axzoo.spec import RopeSpec

_KEYS = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
}

_MAX_DIM = 1 << 16
"""No model is near it; a config that says more would only fill the memory."""


def make_rope(rotary_dim: int, theta: float, scaling: dict[str, Any]) -> RopeSpec:
    """The frequencies of `rotary_dim` rotated dimensions per head.

    `scaling` holds `rope_type` and its parameters. Raises AxzooError for a type axzoo does not know, or for missing,
    superfluous or meaningless parameters.
    """
    kind = scaling["rope_type"]
    if not isinstance(kind, str) or kind not in _KEYS:
        raise AxzooError(f"rope_type {kind!r} is not supported; supported are: {', '.join(_KEYS)}")
    parameters = {key: value for key, value in scaling.items() if key != "rope_type"}
    if set(parameters) != _KEYS[kind]:
        raise AxzooError(
            f"rope_type {kind!r} takes the parameters {sorted(_KEYS[kind])}, but the config has {sorted(parameters)}"
        )
    for key, value in parameters.items():
        if not is_positive_number(value):
            raise AxzooError(f"rope parameter {key} is {value!r}, but must be a positive number")
    if rotary_dim % 2 or rotary_dim > _MAX_DIM:
        raise AxzooError(f"rotary embedding takes an even number of at most {_MAX_DIM} dimensions, not {rotary_dim}")
    with np.errstate(all="ignore"):
        inv_freq = theta ** -(np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
        if kind == "linear":
            inv_freq = inv_freq / parameters["factor"]
        elif kind == "llama3":
            inv_freq = _llama3(inv_freq, **parameters)
        rounded = inv_freq.astype(np.float32)
    if not np.isfinite(rounded).all():
        raise AxzooError(f"rope_theta {theta} with {scaling} gives no finite frequencies: the config is wrong")
    return RopeSpec(theta, tuple(rounded.tolist()))


def is_positive_number(value: Any) -> bool:
    """Whether a value out of a config is a number that fp64 holds, above zero (true and false are none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _llama3(
    inv_freq: NDArray[np.float64],
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: float,
) -> NDArray[np.float64]:
    """Llama 3.1's scaling: long wavelengths slowed by `factor`, short ones kept, a linear blend between."""
    if high_freq_factor <= low_freq_factor:
        raise AxzooError(f"rope's high_freq_factor {high_freq_factor} must be above low_freq_factor {low_freq_factor}")
    turns = original_max_position_embeddings * inv_freq / (2 * math.pi)
    blend = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    scaled: NDArray[np.float64] = (1 - blend) * inv_freq / factor + blend * inv_freq
    return scaled


def rope_tables(rope: RopeSpec, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin of every angle: two arrays [positions, rotary_dim / 2] fp32.

    The angle is the fp32 product Hugging Face's models form; its cosine is taken in double precision.
    """
    steps = np.arange(positions, dtype=np.float32)[:, None]
    angles = (steps * np.asarray(rope.inv_freq, np.float32)).astype(np.float64)
    factor = rope.attention_factor
    return (np.cos(angles) * factor).astype(np.float32), (np.sin(angles) * factor).astype(np.float32)
