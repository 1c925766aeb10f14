"""Estimates from a model's sizes alone, before it is fetched: memory on the chip, memory and time limits of jobs.

The backend estimates jobs that compile parts (`Backend.needs`); this module has all other stages. 1 MB is 10^6 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from axzoo.backends import Backend, Needs, job_minutes
from axzoo.parts.kind import PartKind
from axzoo.parts.kinds import KINDS
from axzoo.weights.formats import FORMATS
from axzoo.weights.recipe import Recipe

Sizes = Mapping[str, int]
"""The `sizes` of a matrix entry: parameter counts by part kind, and `kv_width`."""


@dataclass(frozen=True)
class DeviceMemory:
    """The memory that a build needs on its chip, in MB (10^6 bytes)."""

    weights_mb: int
    kv_cache_mb: int

    @property
    def total_mb(self) -> int:
        return self.weights_mb + self.kv_cache_mb


def device_memory(recipe: Recipe, num_hidden_layers: int, sizes: Sizes) -> DeviceMemory:
    """The memory of weights and KV cache. The embedding does not count, because it stays in host memory.

    For each cached token and layer, K and V have `kv_width` = num_key_value_heads * head_dim values each.
    """
    weights = sum(
        FORMATS[kind.weight_type(recipe)].bytes_on_device * kind.parameters(sizes) * len(kind.ids(num_hidden_layers))
        for kind in KINDS
        if kind.on_device
    )
    cached = 2 * num_hidden_layers * recipe.kv_cache_len * sizes["kv_width"]
    cache = FORMATS[recipe.hidden_state_type].bytes_stored * cached
    return DeviceMemory(weights_mb=round(weights / 1e6), kv_cache_mb=round(cache / 1e6))


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
    "calibrate": _Stage(300, 20.0, bytes_per_weight=8),
    "bundle": _Stage(500, 0.1),
    "check_layers": _Stage(400, 0.5, bytes_per_weight=8),  # two fp32 copies: oracle and engine
    "check_generation": _Stage(300, 1.0, bytes_per_weight=8),
}
"""The times are more than ten times those of SmolLM2-135M on two cores (docs/performance.md), because cluster nodes
differ. Fetching and calibration have a larger margin."""

_ROUNDING = _Stage(8000, 20.0)
"""Calibration-aware rounding of a layer, whichever backend compiles it: the Hessian of a down_proj with 11,008 input
features, and its inverse, in fp64."""


def parameters(num_hidden_layers: int, sizes: Sizes) -> int:
    """The number of parameters of all parts on the device."""
    return sum(kind.parameters(sizes) * len(kind.ids(num_hidden_layers)) for kind in KINDS if kind.on_device)


def stage_needs(stage: str, weights: int | None, held: int | None = None) -> Needs:
    """The resources of a job that processes `weights` weights, `held` of them (default: all) in memory at once. None if
    unknown."""
    return _needs(_STAGES[stage], weights, held)


def _needs(cost: _Stage, weights: int | None, held: int | None = None) -> Needs:
    held = weights if held is None else held
    mem_mb = cost.mem_mb
    if cost.bytes_per_weight:
        mem_mb = cost.unknown_mb if held is None else round(mem_mb + cost.bytes_per_weight * held / 1e6)
    return Needs(mem_mb, job_minutes(weights, cost.seconds))


def part_needs(kind: PartKind, recipe: Recipe, backend: Backend, sizes: Sizes | None, parts: int = 1) -> Needs:
    """The resources of a job that builds `parts` parts of a kind, one after the other."""
    weights = None if sizes is None else kind.parameters(sizes)
    if kind.code is not None:
        return _needs(_Stage(kind.mem_mb, kind.seconds), weights)
    needs = backend.needs(kind, recipe, weights, parts)
    if not kind.is_calibrated(recipe):
        return needs
    rounding = _needs(_ROUNDING, None if weights is None else weights * parts)
    return Needs(max(needs.mem_mb, rounding.mem_mb), max(needs.minutes, rounding.minutes))
