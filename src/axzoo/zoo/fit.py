"""Whether a build fits its chip: the memory its weights and KV cache take there.

An estimate from a model's sizes alone, so that the matrix can be planned before anything is fetched. The embedding
stays in the host's memory and does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from axzoo.recipe import Recipe

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
