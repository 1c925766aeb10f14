"""How long a job may take, by its model's sizes: a cluster ends one that takes longer, which is sent again for more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from axzoo.weights.recipe import Recipe

BYTES_PER_WEIGHT: Mapping[str, float] = {
    "s4": 0.596,
    "s8": 1.164,
    "fp8_e5m2": 4,
    "fp8_e4m3": 4,
    "bf16": 4,
    "fp16": 4,
    "fp32": 4,
}
"""On the device, overhead included: s8 and s4 as measured on boards; every float type takes four bytes there."""

BYTES_PER_CACHED_VALUE: Mapping[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Memory:
    """What a build takes on its chip, in MB (10^6 bytes)."""

    weights_mb: int
    kv_cache_mb: int

    @property
    def total_mb(self) -> int:
        return self.weights_mb + self.kv_cache_mb


def device_memory(recipe: Recipe, num_hidden_layers: int, layer: int, post: int, kv_width: int) -> Memory:
    """The memory of a model whose decoder layers have `layer` parameters each and whose post layer has `post`.

    `kv_width` is num_key_value_heads * head_dim; K and V hold that many values for each cached token and layer.
    """
    weights = BYTES_PER_WEIGHT[recipe.weight_type] * num_hidden_layers * layer
    weights += BYTES_PER_WEIGHT[recipe.post_weight_type] * post
    cached = 2 * num_hidden_layers * recipe.kv_cache_len * kv_width
    cache = BYTES_PER_CACHED_VALUE[recipe.hidden_state_type] * cached
    return Memory(weights_mb=round(weights / 1e6), kv_cache_mb=round(cache / 1e6))


Stage = Literal[
    "fetch", "lock", "calibrate", "layer", "gptq_layer", "post", "embed", "bundle", "check_layers", "check_generation"
]

SECONDS_PER_MILLION: dict[Stage, float] = {
    "fetch": 2.0,  # of bf16 weights, 1 MB/s
    "lock": 0.1,
    "calibrate": 20.0,
    "layer": 0.3,
    "gptq_layer": 20.0,
    "post": 0.3,
    "embed": 0.2,
    "bundle": 0.1,
    "check_layers": 0.5,
    "check_generation": 1.0,
}
"""For a million weights: ten times and more what SmolLM2-135M takes on two cores (docs/performance.md), since nodes
differ; fetching and GPTQ more generously."""

_START = 10
_ASSUMED_WEIGHTS = 9_000_000_000
"""Of a model whose entry does not state its sizes."""


def minutes(stage: Stage, weights: int | None) -> int:
    """Minutes a job of the stage may take with so many weights, or None where nobody knows them."""
    known = _ASSUMED_WEIGHTS if weights is None else weights
    return _START + math.ceil(known / 1e6 * SECONDS_PER_MILLION[stage] / 60)


STORED_BYTES = {"s4": 0.5, "s8": 1.0, "fp8_e5m2": 1.0, "fp8_e4m3": 1.0, "bf16": 2.0, "fp16": 2.0, "fp32": 4.0}
"""Bytes of a stored weight; scales come on top."""


_BASE_MB, _BLOCK_MB = 120, 240


_UNKNOWN_LAYER_MB, _UNKNOWN_POST_MB, _UNKNOWN_CHECK_MB = 1000, 3000, 8000
"""For entries that do not state their sizes: a layer 4096 wide and the post layer of 128,256 tokens, with room."""


_CALIBRATED_LAYER_MB = 8000
"""With the Hessian of a down_proj 11,008 wide and its inverse in fp64."""


def layer_mem_mb(recipe: Recipe, layer_weights: int | None) -> int:
    """MB a job compiling one layer, or several one after the other, needs."""
    if recipe.rounding == "gptq":
        return _CALIBRATED_LAYER_MB
    return _part_mem_mb(recipe.weight_type, layer_weights) if layer_weights else _UNKNOWN_LAYER_MB


def post_mem_mb(recipe: Recipe, post_weights: int | None) -> int:
    return _part_mem_mb(recipe.post_weight_type, post_weights) if post_weights else _UNKNOWN_POST_MB


def check_mem_mb(held_weights: int | None) -> int:
    """MB a check needs that holds `held_weights` weights in fp32 twice: the oracle's and the engine's."""
    return round(300 + 8 * held_weights / 1e6) if held_weights else _UNKNOWN_CHECK_MB


def _part_mem_mb(weight_type: str, weights: int) -> int:
    """The stored weights, a block of rows being quantized, and Python with numpy and onnx."""
    return round(_BASE_MB + _BLOCK_MB + 1.1 * STORED_BYTES[weight_type] * weights / 1e6)
