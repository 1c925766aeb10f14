"""Rotary position embedding."""

from __future__ import annotations

from dataclasses import dataclass

from axzoo.axmodel import POSITIONS
from axzoo.graph.builder import GraphBuilder
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
        cos=g.constant(POSITIONS, cos),
        sin=g.constant("rope.sin", sin),
        positions=g.cast(indices, "int64", "rope/positions"),
    )


def rotate(g: GraphBuilder, spec: LayerSpec, value: str, rotary: Rotary, name: str, heads: int) -> str:
    """value [1, n, heads * head_dim] fp32 with the rotated dimensions of every head turned, same shape."""
    partial = spec.rope.rotary_dim if spec.rope.rotary_dim < spec.head_dim else 0
    return g.op(
        "RotaryEmbedding",
        [value, rotary.cos, rotary.sin, rotary.positions],
        f"{name}/RotaryEmbedding",
        num_heads=heads,
        interleaved=int(spec.rope.interleaved),
        rotary_embedding_dim=partial,
    )
