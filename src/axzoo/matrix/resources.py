"""What a build takes, from its sizes alone, before anything is fetched: memory on the chip, memory and minutes of jobs.

A part's job is the backend's to estimate (`Backend.needs`); every other stage has its line here. Memory on the machine
is in MiB-like MB as Snakemake counts it, memory on the chip in MB of 10^6 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from axzoo.backends import Backend, Needs
from axzoo.parts.kind import PartKind
from axzoo.parts.kinds import KINDS
from axzoo.weights.formats import FORMATS
from axzoo.weights.recipe import Recipe

Sizes = Mapping[str, int]
"""`sizes` of a matrix entry: parameters by part kind, and `kv_width`."""


@dataclass(frozen=True)
class DeviceMemory:
    """What a build takes on its chip, in MB (10^6 bytes)."""

    weights_mb: int
    kv_cache_mb: int

    @property
    def total_mb(self) -> int:
        return self.weights_mb + self.kv_cache_mb


def device_memory(recipe: Recipe, num_hidden_layers: int, sizes: Sizes) -> DeviceMemory:
    """The memory of weights and KV cache. The embedding stays in the host's memory and does not count.

    K and V hold `kv_width` values, num_key_value_heads * head_dim, for each cached token and layer.
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
    """A stage's memory, `mem_mb` and `bytes_per_weight` of the weights it holds; `seconds` for a million weights."""

    mem_mb: int
    seconds: float
    bytes_per_weight: int = 0
    unknown_mb: int = 8000


_STAGES: Mapping[str, _Stage] = {
    "fetch": _Stage(1000, 2.0),  # of bf16 weights, 1 MB/s
    "lock": _Stage(1000, 0.1),
    "calibrate": _Stage(300, 20.0, bytes_per_weight=8),
    "bundle": _Stage(500, 0.1),
    "check_layers": _Stage(300, 0.5, bytes_per_weight=8),  # in fp32 twice: the oracle's and the engine's
    "check_generation": _Stage(300, 1.0, bytes_per_weight=8),
}
"""The seconds are more than ten times what SmolLM2-135M takes on two cores (docs/performance.md), since nodes of a
cluster differ; fetching and calibration have more room."""

_START_MINUTES = 10
_ASSUMED_WEIGHTS = 9_000_000_000
"""Of a model whose entry states no sizes."""


def parameters(num_hidden_layers: int, sizes: Sizes) -> int:
    """Parameters of all parts the board computes with."""
    return sum(kind.parameters(sizes) * len(kind.ids(num_hidden_layers)) for kind in KINDS if kind.on_device)


def stage_needs(stage: str, weights: int | None, held: int | None = None) -> Needs:
    """What a job of a stage takes that goes through `weights` weights and holds `held` of them (default: all) at once;
    None where nobody knows."""
    return _needs(_STAGES[stage], weights, held)


def _needs(cost: _Stage, weights: int | None, held: int | None = None) -> Needs:
    held = weights if held is None else held
    mem_mb = cost.mem_mb
    if cost.bytes_per_weight:
        mem_mb = cost.unknown_mb if held is None else round(mem_mb + cost.bytes_per_weight * held / 1e6)
    known = _ASSUMED_WEIGHTS if weights is None else weights
    return Needs(mem_mb, _START_MINUTES + math.ceil(known / 1e6 * cost.seconds / 60))


def part_needs(kind: PartKind, recipe: Recipe, backend: Backend, sizes: Sizes | None, parts: int = 1) -> Needs:
    """What a job takes that builds `parts` parts of a kind, one after the other."""
    weights = None if sizes is None else kind.parameters(sizes)
    if kind.code is not None:
        return _needs(_Stage(kind.mem_mb, kind.seconds), weights)
    return backend.needs(kind, recipe, weights, parts)
