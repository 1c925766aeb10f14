"""Each building block in onnx's reference evaluator, compared with numpy in fp64."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from run_block import run_block, run_in_onnxruntime

from axzoo.backends.host.builder import GraphBuilder
from axzoo.backends.host.operators import linear, mlp, norm, scaled
from axzoo.model.spec import LayerSpec, NormSpec, RopeSpec
from axzoo.weights.encoding import WeightFormat, layer_format, post_format
from axzoo.weights.recipe import POST_WEIGHT_TYPES, WEIGHT_TYPES, Recipe
from axzoo.weights.stored import StoredWeight, store_weight

RNG = np.random.default_rng(0)
X: NDArray[np.float32] = RNG.standard_normal((1, 3, 8)).astype(np.float32)
RMS = NormSpec("rms_norm", 0.25)


def _vector(size: int) -> NDArray[np.float32]:
    return RNG.standard_normal(size).astype(np.float32)


FORMATS = {
    **{name: layer_format(Recipe(weight_type=name)) for name in WEIGHT_TYPES},
    **{f"post {name}": post_format(name) for name in POST_WEIGHT_TYPES},
    "s4 g32": layer_format(Recipe(weight_type="s4", weight_group_size=32)),
    "s8 g64": layer_format(Recipe(weight_type="s8", weight_group_size=64)),
}
FP32 = FORMATS["fp32"]


def _weight(rows: int, columns: int, form: WeightFormat) -> StoredWeight:
    matrix = RNG.standard_normal((rows, columns)).astype(np.float32)
    return store_weight("w", [matrix], (rows, columns), form)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("columns", [64, 128])
@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS.keys())
def test_linear(form: WeightFormat, columns: int, biased: bool) -> None:
    x = RNG.standard_normal((1, 3, columns)).astype(np.float32)
    weights = {"q_proj": _weight(5, columns, form), "k_proj": _weight(5, columns, form)}
    vectors = {"q_proj.bias": _vector(5)} if biased else {}
    vectors["k_proj.bias"] = _vector(5)  # of another linear

    def make(g: GraphBuilder) -> list[str]:
        return [linear(g, "x", weights, vectors, "q_proj", "attention")]

    expected = x.astype(np.float64) @ weights["q_proj"].dequantized() + vectors.get("q_proj.bias", 0)
    for found in (*run_block(make, x=x).values(), *run_in_onnxruntime(make, x=x).values()):
        assert_allclose(found, expected, atol=2e-5)


def test_rms_norm() -> None:
    vectors = {"input_norm.weight": _vector(8)}
    (found,) = run_block(lambda g: [norm(g, RMS, "x", vectors, "input_norm")], x=X).values()
    x = X.astype(np.float64)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.25) * vectors["input_norm.weight"]
    assert_allclose(found, expected, atol=1e-6)


def test_layer_norm() -> None:
    vectors = {"norm.weight": _vector(8), "norm.bias": _vector(8)}
    (found,) = run_block(lambda g: [norm(g, NormSpec("layer_norm", 0.25), "x", vectors, "norm")], x=X).values()
    x = X.astype(np.float64)
    apart = x - x.mean(-1, keepdims=True)
    expected = (
        apart / np.sqrt((apart**2).mean(-1, keepdims=True) + 0.25) * vectors["norm.weight"] + vectors["norm.bias"]
    )
    assert_allclose(found, expected, atol=1e-6)


def _silu(x: NDArray[Any]) -> NDArray[Any]:
    return x / (1 + np.exp(-x))


def _gelu_new(x: NDArray[Any]) -> NDArray[Any]:
    """The tanh approximation of Hendrycks and Gimpel, as in GPT-2."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("act, function", [("silu", _silu), ("gelu_new", _gelu_new)])
@pytest.mark.parametrize("gated", [True, False])
def test_mlp(gated: bool, act: str, function: Any, biased: bool) -> None:
    spec = LayerSpec(8, 6, 1, 1, 8, RMS, RopeSpec(1e4, 8), 16, hidden_act=act, gated=gated, mlp_bias=biased)
    sizes = {"up_proj": (6, 8), "down_proj": (8, 6)} | ({"gate_proj": (6, 8)} if gated else {})
    weights = {role: _weight(*shape, FP32) for role, shape in sizes.items()}
    vectors = {f"{role}.bias": _vector(rows) for role, (rows, _) in sizes.items()} if biased else {}
    (found,) = run_block(lambda g: [mlp(g, spec, "x", weights, vectors)], x=X).values()

    def project(role: str, x: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(x @ weights[role].dequantized().astype(np.float64) + vectors.get(f"{role}.bias", 0))

    up = project("up_proj", X)
    expected = project("down_proj", function(project("gate_proj", X)) * up if gated else function(up))
    assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("factor", [1.4 / 40**0.5, 12.0, -1.0, 1.0])
def test_scale(factor: float) -> None:
    (found,) = run_block(lambda g: [g.op("Neg", [scaled(g, "x", factor, "input")], "out")], x=X).values()
    assert_allclose(found, -factor * X.astype(np.float64), rtol=1e-6)


def test_scale_of_one_adds_no_node() -> None:
    g = GraphBuilder()
    assert scaled(g, "x", 1.0, "input") == "x"
    graph = onnx.GraphProto.FromString(b"".join(g.graph("empty", [], [])))
    assert (len(graph.node), len(graph.initializer)) == (0, 0)


def test_constants_keep_their_bytes_and_values_have_the_names_of_their_nodes() -> None:
    g = GraphBuilder()
    g.constant("c", np.arange(6, dtype=np.float32).reshape(2, 3).T)
    assert g.cast("c", "bf16", "there") == "there"
    assert g.cast("there", "fp32", "back", output="result") == "result"
    graph = onnx.GraphProto.FromString(b"".join(g.graph("named", [], [])))
    assert onnx.numpy_helper.to_array(graph.initializer[0]).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert [(node.name, list(node.output)) for node in graph.node] == [("there", ["there"]), ("back", ["result"])]
