"""Each building block, run by itself by onnx's own evaluator, against numpy in double precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from axzoo.graph.builder import GraphBuilder
from axzoo.graph.linear import linear
from axzoo.graph.mlp import gated_mlp
from axzoo.graph.norm import rms_norm
from axzoo.quantize.weights import LAYER_RULE, StoredWeight, store_weight

RNG = np.random.default_rng(0)
X: NDArray[np.float32] = RNG.standard_normal((1, 3, 8)).astype(np.float32)


def _run(make: Callable[[GraphBuilder], str]) -> NDArray[Any]:
    """What a block makes of X."""
    g = GraphBuilder()
    output = make(g)
    graph = g.graph(
        "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n", 8])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, "n", None])],
    )
    model = onnx.ModelProto(ir_version=11, opset_import=[helper.make_opsetid("", 23)], graph=graph)
    onnx.checker.check_model(model, full_check=True)
    (result,) = ReferenceEvaluator(model).run(None, {"x": X})
    return np.asarray(result)


def _weight(rows: int, columns: int, weight_type: str) -> StoredWeight:
    matrix = RNG.standard_normal((rows, columns)).astype(np.float32)
    return store_weight([matrix], (rows, columns), weight_type, LAYER_RULE)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("weight_type", ["fp32", "fp16", "bf16", "s8"])
def test_linear(weight_type: str, biased: bool) -> None:
    weight, bias = _weight(5, 8, weight_type), RNG.standard_normal(5).astype(np.float32) if biased else None
    found = _run(lambda g: linear(g, "x", weight, bias, "q_proj", "attention"))
    wanted = X.astype(np.float64) @ weight.dequantized() + (0 if bias is None else bias)
    assert_allclose(found, wanted, atol=1e-5)


def test_rms_norm() -> None:
    scale = RNG.standard_normal(8).astype(np.float32)
    x = X.astype(np.float64)
    wanted = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.25) * scale
    assert_allclose(_run(lambda g: rms_norm(g, "x", scale, 0.25, "norm")), wanted, atol=1e-6)


def test_gated_mlp() -> None:
    weights = {"gate_proj": _weight(6, 8, "fp32"), "up_proj": _weight(6, 8, "fp32"), "down_proj": _weight(8, 6, "fp32")}
    biases = {"up_proj": RNG.standard_normal(6).astype(np.float32)}
    gate, up, down = (weights[role].dequantized().astype(np.float64) for role in weights)
    gated = X @ gate
    wanted = (gated / (1 + np.exp(-gated)) * (X @ up + biases["up_proj"])) @ down
    assert_allclose(_run(lambda g: gated_mlp(g, "x", weights, biases)), wanted, atol=1e-5)


def test_constants_keep_their_bytes_and_values_are_named_after_their_nodes() -> None:
    g = GraphBuilder()
    g.constant("c", np.arange(6, dtype=np.float32).reshape(2, 3).T)
    assert g.cast("c", "bf16", "there") == "there"
    assert g.cast("there", "fp32", "back", output="result") == "result"
    graph = g.graph("named", [], [])
    assert onnx.numpy_helper.to_array(graph.initializer[0]).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert [(node.name, list(node.output)) for node in graph.node] == [("there", ["there"]), ("back", ["result"])]
