"""The MLP, gated or plain."""

from __future__ import annotations

from collections.abc import Mapping

from axzoo.graph.builder import GraphBuilder
from axzoo.graph.linear import linear
from axzoo.graph.norm import Vectors
from axzoo.quantize.weights import StoredWeight
from axzoo.spec import LayerSpec


def mlp(g: GraphBuilder, spec: LayerSpec, x: str, weights: Mapping[str, StoredWeight], vectors: Vectors) -> str:
    """x [1, n, hidden_size] fp32 -> down(act(gate(x)) * up(x)), or down(act(up(x))) where not gated; same shape."""
    up = linear(g, x, weights, vectors, "up_proj", "mlp")
    if spec.gated:
        gate = _activate(g, spec.hidden_act, linear(g, x, weights, vectors, "gate_proj", "mlp"))
        inner = g.op("Mul", [gate, up], "mlp/Mul")
    else:
        inner = _activate(g, spec.hidden_act, up)
    return linear(g, inner, weights, vectors, "down_proj", "mlp")


def _activate(g: GraphBuilder, act: str, x: str) -> str:
    if act == "silu":
        return g.op("Mul", [x, g.op("Sigmoid", [x], "mlp/silu/Sigmoid")], "mlp/silu/Mul")
    return g.op("Gelu", [x], "mlp/Gelu", approximate="tanh")  # gelu_new
