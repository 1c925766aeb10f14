"""Linear layers over stored weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axzoo.graph.builder import GraphBuilder
from axzoo.graph.norm import Vectors
from axzoo.quantize.weights import StoredWeight


def linear(
    g: GraphBuilder, x: str, weights: Mapping[str, StoredWeight], vectors: Vectors, role: str, prefix: str
) -> str:
    """x [..., in_features] fp32 -> [..., out_features] fp32, with a bias where `vectors` has one for the role.

    Codes become DequantizeLinear (one scale per output column, or per block of rows of it) + MatMul, 16-bit floats
    Cast + MatMul.
    """
    weight = weights[role]
    matrix = g.constant(f"{role}.weight", weight.values)
    groups = len(weight.scales)
    if groups:
        scales = g.constant(f"{role}.scale", weight.scales[0] if groups == 1 else weight.scales)
        layout: dict[str, Any] = {"axis": 1} if groups == 1 else {"axis": 0, "block_size": len(weight.values) // groups}
        matrix = g.op("DequantizeLinear", [matrix, scales], f"{prefix}/{role}/DequantizeLinear", **layout)
    elif weight.values.dtype != "float32":
        matrix = g.cast(matrix, "fp32", f"{prefix}/{role}/Cast")
    y = g.op("MatMul", [x, matrix], f"{prefix}/{role}/MatMul")
    bias = vectors.get(f"{role}.bias")
    return y if bias is None else g.op("Add", [y, g.constant(f"{role}.bias", bias)], f"{prefix}/{role}/Add")
