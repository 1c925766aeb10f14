"""Grouped-query attention over a KV cache, with rotary position embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from axzoo.graph.builder import GraphBuilder
from axzoo.graph.linear import linear
from axzoo.quantize.weights import StoredWeight
from axzoo.rope import rope_tables
from axzoo.spec import LayerSpec


@dataclass(frozen=True)
class Rotary:
    """Names of the tables and positions that rotate queries and keys."""

    cos: str
    sin: str
    positions: str


def rotary_inputs(g: GraphBuilder, spec: LayerSpec, positions: int, indices: str) -> Rotary:
    """Tables for `positions` positions, and the uint32 `indices` [1, n] as the int64 the operator takes."""
    cos, sin = rope_tables(spec.rope, positions)
    return Rotary(
        cos=g.constant("rope.cos", cos),
        sin=g.constant("rope.sin", sin),
        positions=g.cast(indices, "int64", "rope/positions"),
    )


def attention(
    g: GraphBuilder,
    spec: LayerSpec,
    x: str,
    rotary: Rotary,
    weights: Mapping[str, StoredWeight],
    biases: Mapping[str, NDArray[np.float32]],
    state: str,
) -> str:
    """x [1, n, hidden_size] fp32, already normed -> the attention's output, same shape.

    Writes K_cache_out and V_cache_out [1, n, kv_size] in the hidden state's dtype `state`, K after rotation. Attention
    reads the new rows as rounded for the cache, so a token sees the same keys whether they come from its own chunk or
    from the cache. `mask` [1, n, cached + n] is added to the scores.
    """

    def project(role: str, value: str) -> str:
        return linear(g, value, weights[role], biases.get(role), role, "attention")

    def rotate(value: str, heads: int, name: str) -> str:
        inputs = [value, rotary.cos, rotary.sin, rotary.positions]
        return g.op("RotaryEmbedding", inputs, f"attention/{name}/RotaryEmbedding", num_heads=heads)

    def cached(value: str, cache: str) -> str:
        new = g.cast(value, state, f"attention/{cache}/round", output=f"{cache}_out")
        rows = g.op("Concat", [cache, new], f"attention/{cache}/Concat", axis=1)
        return g.cast(rows, "fp32", f"attention/{cache}/Cast")

    query = rotate(project("q_proj", x), spec.num_attention_heads, "query")
    key = cached(rotate(project("k_proj", x), spec.num_key_value_heads, "key"), "K_cache")
    value = cached(project("v_proj", x), "V_cache")
    scores_mask = g.cast("mask", "fp32", "attention/mask/Cast")
    head_axis = g.constant("attention/mask/axis", np.array([1], np.int64))
    scores_mask = g.op("Unsqueeze", [scores_mask, head_axis], "attention/mask/Unsqueeze")
    mixed = g.op(
        "Attention",
        [query, key, value, scores_mask],
        "attention/Attention",
        q_num_heads=spec.num_attention_heads,
        kv_num_heads=spec.num_key_value_heads,
    )
    return project("o_proj", mixed)
