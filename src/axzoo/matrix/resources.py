"""Estimates from a model's sizes alone, before it is fetched: memory and time limits of jobs.

The backend estimates jobs that compile parts (`Backend.needs`); this module has all other stages. 1 MB is 10^6 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from axzoo.backends import Backend, Needs, job_minutes
from axzoo.calibrate import HELD_BYTES
from axzoo.forecast.sizes import Sizes
from axzoo.parts.kind import PartKind
from axzoo.weights.recipe import Recipe

WIDTHS = {"hidden_size": "hidden_size", "intermediate_size": "intermediate_size", "kv_width": "kv_size"}
"""The widths, and the field of a layer's spec that each must equal. Only `kv_width` is required."""


@dataclass(frozen=True)
class _Stage:
    """The cost of a stage: `mem_mb` plus `bytes_per_weight` for each weight in memory, and `seconds` per million
    weights. `unknown_mb` applies if the model's size is unknown."""

    mem_mb: int
    seconds: float
    bytes_per_weight: int = 0
    unknown_mb: int = 8000


_STAGES: Mapping[str, _Stage] = {
    "fetch": _Stage(1000, 2.0),  # bf16 weights at 1 MB/s
    "lock": _Stage(1000, 0.1),
    "calibrate": _Stage(500, 20.0, bytes_per_weight=4, unknown_mb=2000),  # torch, and at most HELD_BYTES
    "bundle": _Stage(500, 0.1),
    "check_layers": _Stage(450, 0.5, bytes_per_weight=12),  # fp32 of a layer: the checkpoint's, the file's, scratch
    "check_generation": _Stage(700, 1.0, bytes_per_weight=1),  # the mapped files, in bytes
    "check_weights": _Stage(300, 0.5, bytes_per_weight=8),  # 127 MB for SmolLM2-135M; larger models were not measured
    "check_vision": _Stage(500, 1.0, bytes_per_weight=3),  # stored up to twice while loading, fp32 one block at a time
}
"""The times are more than ten times those of SmolLM2-135M on two cores (docs/performance.md), because cluster nodes
differ. Fetching and calibration have a larger margin."""

_ROUNDING_SECONDS = 20.0
"""Calibration-aware rounding of a layer, whichever backend compiles it: per million weights."""

TOKENS = 8192
"""Calibration tokens, unless the matrix says otherwise."""


def rounding_mb(sizes: Sizes | None, tokens: int) -> int:
    """The memory of calibration-aware rounding: one layer's weights and codes, its activations for all tokens, the
    attention scores of 8 sequences, and the Hessian of the widest input with its factors."""
    weights, hidden, inner = _widths(sizes)
    hessian = 20 * max(hidden, inner) ** 2
    return round(400 + (8 * weights + hessian + _activations(hidden, inner, tokens)) / 1e6 + hidden / 10)


def states_mb(sizes: Sizes | None, tokens: int) -> int:
    """The memory of the hidden states of `axzoo calibrate` for more than TOKENS tokens, which its stage includes."""
    _, hidden, _ = _widths(sizes)
    return round(12 * hidden * max(0, tokens - TOKENS) / 1e6)


def _widths(sizes: Sizes | None) -> tuple[int, int, int]:
    """A layer's parameters, hidden_size and intermediate_size. Unknown widths are the largest that known models with
    so many parameters have, and unknown sizes those of a model of 7 billion parameters."""
    known = {"layer": 250_000_000, **(sizes or {})}
    weights = known["layer"]
    inner = known.get("intermediate_size", math.isqrt(weights * 9 // 5))  # 6 times hidden_size
    hidden = known.get("hidden_size", math.isqrt(weights // 10))  # if intermediate_size is 2.7 times as large
    return weights, hidden, inner


def _activations(hidden: int, inner: int, tokens: int) -> int:
    """Bytes of a layer's intermediate values."""
    return 4 * tokens * (4 * hidden + 3 * inner)


def level_1_weights(sizes: Sizes) -> int:
    """How many weights level 1 holds at once: a layer, and blocks of the post layer, which stays in its file."""
    return sizes["layer"] + sizes["post"] // 12


def stage_needs(stage: str, weights: int | None, held: int | None = None) -> Needs:
    """The resources of a job that processes `weights` weights, `held` of them (default: all) in memory at once; for
    check_generation, `held` is the size of the mapped files. None if unknown."""
    return _needs(_STAGES[stage], weights, held)


def calibration_needs(weights: int | None) -> Needs:
    """The resources of a calibration. It holds at most HELD_BYTES of weights in fp32."""
    return stage_needs("calibrate", weights, held=None if weights is None else min(weights, HELD_BYTES // 4))


def _needs(cost: _Stage, weights: int | None, held: int | None = None) -> Needs:
    held = weights if held is None else held
    mem_mb = cost.mem_mb
    if cost.bytes_per_weight:
        mem_mb = cost.unknown_mb if held is None else round(mem_mb + cost.bytes_per_weight * held / 1e6)
    return Needs(mem_mb, job_minutes(weights, cost.seconds))


def part_needs(
    kind: PartKind, recipe: Recipe, backend: Backend, sizes: Sizes | None, parts: int = 1, tokens: int = TOKENS
) -> Needs:
    """The resources of a job that builds `parts` parts of a kind, one after the other. `tokens` are used for
    calibration, if the recipe needs it."""
    weights = None if sizes is None else kind.parameters(sizes)
    if kind.code is not None:
        return _needs(_Stage(kind.mem_mb, kind.seconds), weights)
    needs = backend.needs(kind, recipe, weights, parts)
    if not kind.is_calibrated(recipe):
        return needs
    minutes = job_minutes(None if weights is None else weights * parts, _ROUNDING_SECONDS)
    return Needs(max(needs.mem_mb, rounding_mb(sizes, tokens)), max(needs.minutes, minutes))
