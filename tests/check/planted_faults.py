"""Faults for the files of a bundle, as wrong compilers, stale stores and careless hands make them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from axzoo.backends.host.compiler import compile_layer
from axzoo.model.spec import LayerSpec
from axzoo.parts.part import read_part
from axzoo.weights.recipe import Recipe
from tiny_model import Built

Array = NDArray[Any]


def edit(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Changes a file's model. The file is replaced, because it may be a link."""
    model = onnx.load(path)
    change(model)
    path.unlink()
    onnx.save(model, path)


def set_tensor(model: onnx.ModelProto, name: str, change: Callable[[Array], Array]) -> None:
    """Replaces an initializer by what `change` makes of it, in the same dtype."""
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    old = numpy_helper.to_array(tensor)
    new = np.ascontiguousarray(change(old.copy()))
    if old.dtype == ml_dtypes.int4:
        low, high = new.reshape(-1).view(np.uint8)[0::2] & 15, new.reshape(-1).view(np.uint8)[1::2] & 15
        tensor.raw_data = (low | high << 4).tobytes()
    else:
        tensor.raw_data = new.astype(old.dtype).tobytes()


def change_tensor(name: str, change: Callable[[Array], Array], layer: int = 1) -> Callable[[Built], None]:
    return lambda built: edit(built.layers[layer], lambda model: set_tensor(model, name, change))


def change_graph(change: Callable[[onnx.GraphProto], None], layer: int = 1) -> Callable[[Built], None]:
    return lambda built: edit(built.layers[layer], lambda model: change(model.graph))


def node(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    (found,) = (node for node in graph.node if node.name == name)
    return found


def attribute(name: str, key: str, value: float) -> Callable[[Built], None]:
    """Sets an attribute of the node `name`."""

    def change(graph: onnx.GraphProto) -> None:
        (found,) = (item for item in node(graph, name).attribute if item.name == key)
        found.CopyFrom(helper.make_attribute(key, value))

    return change_graph(change)


def bypass(name: str) -> Callable[[Built], None]:
    """Removes a node: what reads its output reads its first input."""

    def change(graph: onnx.GraphProto) -> None:
        removed = node(graph, name)
        for other in graph.node:
            for i, value in enumerate(other.input):
                if value == removed.output[0]:
                    other.input[i] = removed.input[0]
        graph.node.remove(removed)

    return change_graph(change)


def exchange_inputs(first: str, second: str) -> Callable[[Built], None]:
    """Exchanges two values wherever they are read."""

    def change(graph: onnx.GraphProto) -> None:
        for item in graph.node:
            for i, value in enumerate(item.input):
                item.input[i] = {first: second, second: first}.get(value, value)

    return change_graph(change)


def activation(graph: onnx.GraphProto) -> None:
    """SiLU becomes GELU."""
    silu = node(graph, "mlp/silu/Mul")
    silu.CopyFrom(helper.make_node("Gelu", [silu.input[0]], list(silu.output), name=silu.name, approximate="tanh"))


def exact_gelu(graph: onnx.GraphProto) -> None:
    """The tanh approximation of GELU becomes GELU, a difference of less than 0.0005."""
    gelu = node(graph, "mlp/Gelu")
    gelu.CopyFrom(helper.make_node("Gelu", list(gelu.input), list(gelu.output), name=gelu.name))


def mask_off_by_one_after(cached: int) -> Callable[[Built], None]:
    """With `cached` or more cached tokens, the oldest one is hidden: the mask of some groups is off by one."""

    def change(graph: onnx.GraphProto) -> None:
        added = node(graph, "mask/Unsqueeze")
        result, added.output[0] = added.output[0], "fault/mask"
        constants = {
            "fault.zero": np.array(0, np.int64),
            "fault.one": np.array(1, np.int64),
            "fault.cached": np.array([cached], np.int64),
            "fault.hidden": np.array(-65536, np.float32),
            "fault.shown": np.array(0, np.float32),
        }
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
        new = [
            helper.make_node("Shape", ["K_cache"], ["fault/cached"], start=1, end=2),
            helper.make_node("GreaterOrEqual", ["fault/cached", "fault.cached"], ["fault/long"]),
            helper.make_node("Where", ["fault/long", "fault.one", "fault.zero"], ["fault/first"]),
            helper.make_node("Shape", ["mask"], ["fault/total"], start=2, end=3),
            helper.make_node("Squeeze", ["fault/total"], ["fault/count"]),
            helper.make_node("Range", ["fault.zero", "fault/count", "fault.one"], ["fault/slots"]),
            helper.make_node("GreaterOrEqual", ["fault/slots", "fault/first"], ["fault/visible"]),
            helper.make_node("Where", ["fault/visible", "fault.shown", "fault.hidden"], ["fault/row"]),
            helper.make_node("Add", ["fault/mask", "fault/row"], [result]),
        ]
        at = list(graph.node).index(added) + 1
        for number, item in enumerate(new):
            graph.node.insert(at + number, item)

    return change_graph(change)


def overflow_from(position: int, value: float) -> Callable[[Built], None]:
    """Tokens from `position` on get `value` in place of what the last MLP adds: infinity, NaN, or 0."""

    def change(graph: onnx.GraphProto) -> None:
        added = node(graph, "mlp/residual/Add")
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), "fault.value"))
        graph.initializer.append(numpy_helper.from_array(np.array([position], np.int64), "fault.position"))
        graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "fault.axis"))
        new = [
            helper.make_node("Cast", ["indices"], ["fault/positions"], to=onnx.TensorProto.INT64),
            helper.make_node("GreaterOrEqual", ["fault/positions", "fault.position"], ["fault/late"]),
            helper.make_node("Cast", ["fault/late"], ["fault/int"], to=onnx.TensorProto.INT64),
            helper.make_node("Unsqueeze", ["fault/int", "fault.axis"], ["fault/column"]),
            helper.make_node("Cast", ["fault/column"], ["fault/chosen"], to=onnx.TensorProto.BOOL),
            helper.make_node("Where", ["fault/chosen", "fault.value", added.input[1]], ["fault/added"]),
        ]
        at = list(graph.node).index(added)
        added.input[1] = "fault/added"
        for number, item in enumerate(new):
            graph.node.insert(at + number, item)

    return change_graph(change)


def compiled_with(change: Callable[[LayerSpec], LayerSpec], layer: int = 1) -> Callable[[Built], None]:
    """The layer, compiled from the right tensors with another spec."""

    def plant(built: Built) -> None:
        from axzoo.parts.checkpoint_oracle import part_weights
        from axzoo.parts.kind import PartId

        part = read_part(built.locks / PartId("layer", layer).lock_file)
        weights = part_weights(built.locks, built.source, part.id)
        spec = change(LayerSpec.from_dict(dict(part.spec)))
        compiled = compile_layer(
            spec, built.recipe, part.shapes, lambda role: (block.numpy() for block in weights.rows(role))
        )
        write_compiled(built.layers[layer], compiled)

    return plant


def compiled_for(recipe: Recipe, layer: int = 1) -> Callable[[Built], None]:
    """The layer, compiled for another recipe."""

    def plant(built: Built) -> None:
        compiled_with(lambda spec: spec, layer)(replace(built, recipe=recipe, folder=built.folder))

    return plant


def write_compiled(path: Path, compiled: Any) -> None:
    path.unlink()
    with path.open("wb") as file:
        file.writelines(compiled.pieces)


def copy_file(source: Path, target: Path) -> None:
    target.unlink()
    shutil.copy(source, target)


def bf16_truncated(array: Array) -> Array:
    return (array.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def at(index: Any, value: Any) -> Callable[[Array], Array]:
    """Sets one element, row or column."""

    def change(array: Array) -> Array:
        array[index] = value(array[index]) if callable(value) else value
        return array

    return change
