"""Editing ONNX graphs: finding nodes that belong together, adding nodes and weights, replacing nodes by faster ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from axzoo.backends.host.container import IR_VERSION, OPSET


class Unmatched(LookupError):
    """The graph is not of the form looked for."""


class Values:
    """A graph's values, by name: which node makes them, or which constant they are."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._makers: dict[str, onnx.NodeProto] = {output: node for node in graph.node for output in node.output}
        self._constants: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in graph.initializer}

    def made_by(self, value: str, op_type: str) -> onnx.NodeProto:
        """The node that makes the value. Raises Unmatched when it is of another kind, or there is none."""
        if not self.is_made_by(value, op_type):
            raise Unmatched(f"{value} is not made by {op_type}")
        return self._makers[value]

    def is_made_by(self, value: str, op_type: str) -> bool:
        return value in self._makers and self._makers[value].op_type == op_type

    def is_computed(self, value: str) -> bool:
        """Whether a node makes the value: it is no constant, and not given from outside."""
        return value in self._makers

    def shape(self, constant: str) -> tuple[int, ...]:
        return tuple(self._constants[constant].dims)

    def constant(self, value: str) -> NDArray[Any]:
        """A small constant's numbers. Raises Unmatched when the value is none."""
        if value not in self._constants:
            raise Unmatched(f"{value} is no constant")
        return numpy_helper.to_array(self._constants[value])


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Gives the graph these nodes instead of its own, without those whose values nobody takes, and drops the inputs and
    constants that nobody takes any more."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    del graph.node[:]
    graph.node.extend(copies)
    for field in (graph.initializer, graph.input):
        for unused in [one for one in field if one.name not in needed]:
            field.remove(unused)


class Parts:
    """Nodes and constants are written here; `graph` is open to whoever changes it as a whole."""

    def __init__(self) -> None:
        self.graph = onnx.GraphProto(name="joined")
        self._constants: set[str] = set()
        self._weights: dict[str, tuple[NDArray[Any], int]] = {}

    def add_node(self, op_type: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:
        """A node, called as its first output; returns that."""
        node = helper.make_node(op_type, inputs, outputs, name=outputs[0], domain=domain, **attributes)
        self.graph.node.append(node)
        return outputs[0]

    def add_constant(self, name: str, array: NDArray[Any] | np.generic) -> str:
        """A few numbers, once under one name; returns the name."""
        return self.add_tensor(name, numpy_helper.from_array(np.asarray(array)))

    def add_tensor(self, name: str, tensor: onnx.TensorProto) -> str:
        """The same, of numbers as they are stored."""
        if name not in self._constants:
            self._constants.add(name)
            kept = self.graph.initializer.add()
            kept.CopyFrom(tensor)
            kept.name = name
        return name

    def add_weight(self, name: str, array: NDArray[Any], data_type: int) -> str:
        """Numbers that the session is handed beside the graph, which protobuf limits to 2 GiB; returns the name."""
        if name not in self._weights:
            self._weights[name] = np.ascontiguousarray(array), data_type
            tensor = self.graph.initializer.add(name=name, data_type=data_type, dims=array.shape)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="beside the graph")
        return name

    def load(self, options: ort.SessionOptions) -> ort.InferenceSession:
        """Raises what ONNX Runtime raises when it does not run the graph."""
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(self.graph, opset_imports=opsets, ir_version=IR_VERSION)
        kept = [tensor.name for tensor in self.graph.initializer if tensor.name in self._weights]
        options.add_external_initializers(kept, [_value(*self._weights[name]) for name in kept])
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _value(array: NDArray[Any], data_type: int) -> ort.OrtValue:
    """The array's memory, not a copy, as numbers of a type that numpy may lack."""
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(f"u{array.itemsize}"), data_type)


def join_residual_norms(graph: onnx.GraphProto) -> None:
    """Add + RMSNormalization over the last axis of hidden states -> SkipSimplifiedLayerNormalization, which gives both
    the norm and the sum."""
    values = Values(graph)
    norms: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if node.op_type == "RMSNormalization" and values.is_made_by(node.input[0], "Add"):
            add = values.made_by(node.input[0], "Add")
            if all(map(values.is_computed, add.input)):
                norms.setdefault(add.output[0], node)
    gone = {node.output[0] for node in norms.values()}
    nodes = []
    for node in graph.node:
        if node.output[0] in norms:
            nodes.append(_joined(node, norms[node.output[0]]))
        elif node.output[0] not in gone:
            nodes.append(node)
    replace_nodes(graph, nodes)


def _joined(add: onnx.NodeProto, norm: onnx.NodeProto) -> onnx.NodeProto:
    return helper.make_node(
        "SkipSimplifiedLayerNormalization",
        [*add.input, norm.input[1]],
        [norm.output[0], "", "", add.output[0]],
        name=norm.name,
        domain="com.microsoft",
        epsilon=attributes(norm)["epsilon"],
    )


def skip_round_trips(graph: onnx.GraphProto) -> None:
    """Where a value is cast to the hidden state's dtype and back to fp32, takes the value itself.

    Files of axzoo's compute in fp32: what is cast to a hidden state was fp32.
    """
    values = Values(graph)
    instead = {}
    for node in graph.node:
        to_fp32 = node.op_type == "Cast" and attributes(node)["to"] == onnx.TensorProto.FLOAT
        if to_fp32 and values.is_made_by(node.input[0], "Cast"):
            instead[node.output[0]] = values.made_by(node.input[0], "Cast").input[0]
    for node in graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]
    replace_nodes(graph, list(graph.node))
