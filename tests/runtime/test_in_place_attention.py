"""Attention that does not have the form of a layer file is not rewritten."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from axzoo.runtime.fast.in_place_attention import attend_in_place

KV_HEADS, DIM = 2, 16


def _node(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    return next(node for node in graph.node if node.name == name)


def _scale(graph: onnx.GraphProto) -> None:
    _node(graph, "attention").attribute.append(helper.make_attribute("scale", 0.5))


def _unexpected_mask(graph: onnx.GraphProto) -> None:
    _node(graph, "unsqueeze").op_type = "Squeeze"


def _no_rounding(graph: onnx.GraphProto) -> None:
    _node(graph, "keys").op_type = "Identity"


def _no_distance(graph: onnx.GraphProto) -> None:
    _node(graph, "distance").op_type = "Add"


@pytest.mark.parametrize("change", [_scale, _unexpected_mask, _no_rounding, _no_distance])
def test_other_forms_are_not_rewritten(change: Callable[[onnx.GraphProto], None]) -> None:
    graph = _graph()
    change(graph)
    before = graph.SerializeToString()
    assert not attend_in_place(graph, 8)
    assert graph.SerializeToString() == before


def test_the_form_of_a_layer_file_is_rewritten() -> None:
    graph = _graph()
    assert attend_in_place(graph, 8)
    (node,) = graph.node
    assert node.op_type == "GroupQueryAttention"
    assert list(node.input) == ["q", "k", "v", "K_cache", "V_cache", "last position", "total length"]
    windows = [attribute.i for attribute in node.attribute if attribute.name == "local_window_size"]
    assert windows == [3]
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.output}
    assert shapes["K_cache_out"] == shapes["V_cache_out"] == [1, KV_HEADS, 8, DIM]


def _graph() -> onnx.GraphProto:
    """Attention over two caches with a window of 3 and no rotary embedding."""
    fp32, bf16 = onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16

    def cached(rows: str, cache: str, name: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Cast", [rows], [f"{cache}_out"], name=name, to=bf16),
            helper.make_node("Concat", [cache, f"{cache}_out"], [f"{name}/all"], axis=1),
            helper.make_node("Cast", [f"{name}/all"], [f"{name}/fp32"], to=fp32),
        ]

    nodes = [
        helper.make_node("Cast", ["mask"], ["mask/fp32"], to=fp32),
        helper.make_node("Unsqueeze", ["mask/fp32", "axis"], ["mask/heads"], name="unsqueeze"),
        helper.make_node("Sub", ["queries", "positions"], ["distances"], name="distance"),
        helper.make_node("GreaterOrEqual", ["distances", "window"], ["outside"]),
        helper.make_node("Where", ["outside", "closed", "open"], ["within"]),
        helper.make_node("Add", ["mask/heads", "within"], ["scores"]),
        *cached("k", "K_cache", "keys"),
        *cached("v", "V_cache", "values"),
        helper.make_node(
            "Attention",
            ["q", "keys/fp32", "values/fp32", "scores"],
            ["mixed"],
            name="attention",
            q_num_heads=2 * KV_HEADS,
            kv_num_heads=KV_HEADS,
        ),
    ]
    caches = [
        helper.make_tensor_value_info(name, bf16, [1, "cached", KV_HEADS * DIM]) for name in ("K_cache", "V_cache")
    ]
    new = [helper.make_tensor_value_info(name, bf16, None) for name in ("K_cache_out", "V_cache_out")]
    inputs = [
        helper.make_tensor_value_info(name, fp32, [1]) for name in ("q", "k", "v", "mask", "queries", "positions")
    ]
    constants = {"axis": np.array([1]), "window": np.array(3), "closed": np.float32(-1), "open": np.float32(0)}
    return helper.make_graph(
        nodes,
        "attention",
        [*caches, *inputs],
        [helper.make_tensor_value_info("mixed", fp32, None), *new],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
