"""Grouped-query attention over a KV cache, with rotary position embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from axzoo.backends.host.builder import GraphBuilder
from axzoo.backends.host.container import POSITIONS
from axzoo.backends.host.operators import Vectors, linear, norm
from axzoo.model.rope import rope_tables
from axzoo.model.spec import LayerSpec, NormSpec
from axzoo.weights.stored import StoredWeight


@dataclass(frozen=True)
class Rotary:
    """Names of the graph values that rotate queries and keys: cos and sin tables, "" if nothing is rotated, and
    positions."""

    cos: str
    sin: str
    positions: str


def rotary_inputs(g: GraphBuilder, spec: LayerSpec, positions: int, indices: str) -> Rotary:
    """Adds tables for `positions` positions, none if nothing is rotated, and casts the uint32 `indices` [1, n] to
    int64, as RotaryEmbedding requires."""
    rotary = Rotary("", "", g.cast(indices, "int64", "rope/positions"))
    if not spec.rope.rotary_dim:
        return rotary
    cos, sin = rope_tables(spec.rope, positions)
    return replace(rotary, cos=g.constant(POSITIONS, cos), sin=g.constant("rope.sin", sin))


def rotate(g: GraphBuilder, spec: LayerSpec, value: str, rotary: Rotary, name: str, heads: int) -> str:
    """Applies rotary position embedding to value [1, n, heads * head_dim] fp32; same shape."""
    if not spec.rope.rotary_dim:
        return value
    partial = spec.rope.rotary_dim if spec.rope.rotary_dim < spec.head_dim else 0
    return g.op(
        "RotaryEmbedding",
        [value, rotary.cos, rotary.sin, rotary.positions],
        f"{name}/RotaryEmbedding",
        num_heads=heads,
        interleaved=int(spec.rope.interleaved),
        rotary_embedding_dim=partial,
    )


MASKED = -65536.0


def attention_mask(g: GraphBuilder, window: int | None, rotary: Rotary) -> str:
    """The graph's `mask` [1, n, cached + n] as fp32 [1, 1, n, cached + n], plus the sliding window's mask if there is
    one."""
    axis = g.constant("mask.axis", np.array([1], np.int64))
    mask = g.op("Unsqueeze", [g.cast("mask", "fp32", "mask/Cast"), axis], "mask/Unsqueeze")
    if window is None:
        return mask
    return g.op("Add", [mask, _window_mask(g, window, rotary)], "mask/Add")


def _window_mask(g: GraphBuilder, window: int, rotary: Rotary) -> str:
    """[n, cached + n]: MASKED where a key is `window` or more positions before the query, otherwise 0.

    Cache slot j holds position j. The new tokens, at the positions `indices`, follow the cache.
    """
    zero, one = g.constant("window.zero", np.array(0, np.int64)), g.constant("window.one", np.array(1, np.int64))
    cached = g.op("Shape", ["K_cache"], "window/cached/Shape", start=1, end=2)
    cached = g.op("Squeeze", [cached], "window/cached/Squeeze")
    slots = g.op("Range", [zero, cached, one], "window/slots/Range")
    first = g.constant("window.first", np.array([0], np.int64))
    last = g.constant("window.last", np.array([1], np.int64))
    new = g.op("Squeeze", [rotary.positions, first], "window/new/Squeeze")
    keys = g.op("Concat", [slots, new], "window/keys/Concat", axis=0)
    queries = g.op("Unsqueeze", [new, last], "window/queries/Unsqueeze")
    distance = g.op("Sub", [queries, keys], "window/distance/Sub")
    width = g.constant("window.width", np.array(window, np.int64))
    outside = g.op("GreaterOrEqual", [distance, width], "window/outside/GreaterOrEqual")
    masked = g.constant("window.closed", np.array(MASKED, np.float32))
    visible = g.constant("window.open", np.array(0, np.float32))
    return g.op("Where", [outside, masked, visible], "window/Where")


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
    """Normalized x [1, n, hidden_size] fp32 -> attention output, same shape.

    Writes K_cache_out and V_cache_out [1, n, kv_size] in `state`, the dtype of the hidden state; K after rotation.
    Attention uses the new rows as rounded for the cache, so results do not depend on whether a key comes from the same
    chunk or from the cache. `mask` [1, 1, n, cached + n] fp32 is added to the scores.
    """

    def heads(role: str, count: int) -> str:
        value = linear(g, x, weights, vectors, f"{role}_proj", "attention")
        if spec.qk_norm:
            value = _head_norm(g, spec, value, vectors, f"{role}_norm", count)
        return rotate(g, spec, value, rotary, f"attention/{role}", count)

    query = heads("q", spec.num_attention_heads)
    key = _append_to_cache(g, heads("k", spec.num_key_value_heads), "K_cache", state)
    value = _append_to_cache(g, linear(g, x, weights, vectors, "v_proj", "attention"), "V_cache", state)
    mixed = g.op(
        "Attention",
        [query, key, value, mask],
        "attention/Attention",
        q_num_heads=spec.num_attention_heads,
        kv_num_heads=spec.num_key_value_heads,
    )
    return linear(g, mixed, weights, vectors, "o_proj", "attention")


def _head_norm(g: GraphBuilder, spec: LayerSpec, value: str, vectors: Vectors, name: str, heads: int) -> str:
    """Applies RMSNorm to each head of value [1, n, heads * head_dim]; same shape."""
    split = g.constant(f"{name}.heads", np.array([0, 0, heads, spec.head_dim], np.int64))
    joined = g.constant(f"{name}.row", np.array([0, 0, heads * spec.head_dim], np.int64))
    value = g.op("Reshape", [value, split], f"{name}/split/Reshape")
    value = norm(g, NormSpec("rms_norm", spec.norm.eps), value, vectors, name)
    return g.op("Reshape", [value, joined], f"{name}/join/Reshape")


def _append_to_cache(g: GraphBuilder, value: str, cache: str, state: str) -> str:
    """The cached rows followed by the new ones, rounded to the cache's dtype, as fp32 [1, cached + n, kv_size]."""
    new = g.cast(value, state, f"attention/{cache}/round", output=f"{cache}_out")
    rows = g.op("Concat", [cache, new], f"attention/{cache}/Concat", axis=1)
    return g.cast(rows, "fp32", f"attention/{cache}/Cast")
