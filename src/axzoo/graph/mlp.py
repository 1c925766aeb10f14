"""The gated MLP."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from axzoo.graph.builder import GraphBuilder
from axzoo.graph.linear import linear
from axzoo.quantize.weights import StoredWeight


def gated_mlp(
    g: GraphBuilder, x: str, weights: Mapping[str, StoredWeight], biases: Mapping[str, NDArray[np.float32]]
) -> str:
    """x [1, n, hidden_size] fp32 -> down(silu(gate(x)) * up(x)), same shape."""

    def project(role: str, value: str) -> str:
        return linear(g, value, weights[role], biases.get(role), role, "mlp")

    gate = project("gate_proj", x)
    gate = g.op("Mul", [gate, g.op("Sigmoid", [gate], "mlp/silu/Sigmoid")], "mlp/silu/Mul")
    return project("down_proj", g.op("Mul", [gate, project("up_proj", x)], "mlp/Mul"))
