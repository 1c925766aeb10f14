"""Grouped-query attention over a KV cache, with rotary position embedding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from axzoo.graph.builder import GraphBuilder
from axzoo.graph.linear import linear
from axzoo.graph.norm import Vectors, norm
from axzoo.graph.rotary import Rotary, rotate
from axzoo.quantize.weights import StoredWeight
from axzoo.spec import LayerSpec, NormSpec


def attention(
    g: GraphBuilder,
    spec: LayerSpec,
    x: str,
    rotary: Rotary,
    mask: str,
    weights: Mapping[str, StoredWeight],
    vectors: Vectors,
    state: str,
) -> str:
    """x [1, n, hidden_size] fp32, already normed -> the attention's output, same shape.

    Writes K_cache_out and V_cache_out [1, n, kv_size] in the hidden state's dtype `state`, K after rotation. Attention
    reads the new rows as rounded for the cache, so a token sees the same keys whether they come from its own chunk or
    from the cache. `mask` [1, 1, n, cached + n] fp32 is added to the scores.
    """

    def heads(role: str, count: int) -> str:
        value = linear(g, x, weights, vectors, f"{role}_proj", "attention")
        if spec.qk_norm:
            value = _head_norm(g, spec, value, vectors, f"{role}_norm", count)
        return rotate(g, spec, value, rotary, f"attention/{role}", count)

    query = heads("q", spec.num_attention_heads)
    key = _cached(g, heads("k", spec.num_key_value_heads), "K_cache", state)
    value = _cached(g, linear(g, x, weights, vectors, "v_proj", "attention"), "V_cache", state)
    mixed = g.op(
        "Attention",
        [query, key, value, mask],
        "attention/Attention",
        q_num_heads=spec.num_attention_heads,
        kv_num_heads=spec.num_key_value_heads,
    )
    return linear(g, mixed, weights, vectors, "o_proj", "attention")


def _head_norm(g: GraphBuilder, spec: LayerSpec, value: str, vectors: Vectors, name: str, heads: int) -> str:
    """value [1, n, heads * head_dim], each head normed by itself."""
    apart = g.constant(f"{name}.heads", np.array([0, 0, heads, spec.head_dim], np.int64))
    together = g.constant(f"{name}.row", np.array([0, 0, heads * spec.head_dim], np.int64))
    value = g.op("Reshape", [value, apart], f"{name}/split/Reshape")
    value = norm(g, NormSpec("rms_norm", spec.norm.eps), value, vectors, name)
    return g.op("Reshape", [value, together], f"{name}/join/Reshape")


def _cached(g: GraphBuilder, value: str, cache: str, state: str) -> str:
    """The cache's rows and the new ones, rounded to the cache's dtype, as fp32 [1, cached + n, kv_size]."""
    new = g.cast(value, state, f"attention/{cache}/round", output=f"{cache}_out")
    rows = g.op("Concat", [cache, new], f"attention/{cache}/Concat", axis=1)
    return g.cast(rows, "fp32", f"attention/{cache}/Cast")
