"""ONNX building blocks: scaling, normalization, linear layers, the MLP, top-k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from axzoo.backends.host.builder import GraphBuilder
from axzoo.model.spec import Activation, LayerSpec, NormSpec
from axzoo.weights.stored import StoredWeight


def scaled(g: GraphBuilder, x: str, factor: float, name: str) -> str:
    """x * factor; x itself if the factor is 1."""
    if factor == 1.0:
        return x
    return g.op("Mul", [x, g.constant(f"{name}.factor", np.array(factor, np.float32))], f"{name}/Mul")


Vectors = Mapping[str, NDArray[np.float32]]
"""Norm weights ("input_norm.weight") and biases ("q_proj.bias", "input_norm.bias") by role."""


def norm(g: GraphBuilder, spec: NormSpec, x: str, vectors: Vectors, name: str) -> str:
    """Normalizes x [..., features] fp32 over its last axis; same shape."""
    scale = g.constant(f"{name}.weight", vectors[f"{name}.weight"])
    match spec.kind:
        case "rms_norm":
            return g.op("RMSNormalization", [x, scale], f"{name}/RMSNormalization", axis=-1, epsilon=spec.eps)
        case "layer_norm":
            bias = g.constant(f"{name}.bias", vectors[f"{name}.bias"])
            return g.op("LayerNormalization", [x, scale, bias], f"{name}/LayerNormalization", axis=-1, epsilon=spec.eps)
        case unknown:
            assert_never(unknown)


def linear(
    g: GraphBuilder, x: str, weights: Mapping[str, StoredWeight], vectors: Vectors, role: str, prefix: str
) -> str:
    """x [..., in_features] fp32 -> [..., out_features] fp32, plus a bias if `vectors` has one for the role.

    Quantized weights become DequantizeLinear (one scale per output column, or per block of rows in it) + MatMul, 16-bit
    floats become Cast + MatMul.
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


def mlp(g: GraphBuilder, spec: LayerSpec, x: str, weights: Mapping[str, StoredWeight], vectors: Vectors) -> str:
    """x [1, n, hidden_size] fp32 -> down(act(gate(x)) * up(x)), or down(act(up(x))) if not gated; same shape."""
    up = linear(g, x, weights, vectors, "up_proj", "mlp")
    if spec.gated:
        gate = _activate(g, spec.hidden_act, linear(g, x, weights, vectors, "gate_proj", "mlp"))
        inner = g.op("Mul", [gate, up], "mlp/Mul")
    else:
        inner = _activate(g, spec.hidden_act, up)
    return linear(g, inner, weights, vectors, "down_proj", "mlp")


def _activate(g: GraphBuilder, act: Activation, x: str) -> str:
    match act:
        case "silu":
            return g.op("Mul", [x, g.op("Sigmoid", [x], "mlp/silu/Sigmoid")], "mlp/silu/Mul")
        case "gelu_new":
            return g.op("Gelu", [x], "mlp/Gelu", approximate="tanh")
        case unknown:
            assert_never(unknown)


def topk(g: GraphBuilder, logits: str, k: int) -> None:
    """logits [1, 1, vocab_size] fp32 -> the graph outputs "indices" [1, 1, k] int32, the k most probable tokens in
    descending order, and "prob" [1, 1, k] fp32, their softmax probabilities over the whole vocabulary."""
    count = g.constant("topk.k", np.array([k], np.int64))
    g.node("TopK", [logits, count], ["topk/values", "topk/indices"], "topk/TopK", axis=-1)
    probabilities = g.op("Softmax", [logits], "topk/Softmax", axis=-1)
    g.op("GatherElements", [probabilities, "topk/indices"], "topk/GatherElements", output="prob", axis=2)
    g.cast("topk/indices", "int32", "indices/Cast", output="indices")
