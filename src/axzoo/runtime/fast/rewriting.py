"""Edits ONNX graphs: matches patterns of nodes, adds nodes and weights, replaces nodes with faster ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from axzoo.backends.host.container import IR_VERSION, OPSET


class PatternMismatch(LookupError):
    """The graph does not match the expected pattern."""


class GraphIndex:
    """Looks up the values of a graph by name: the node that produces a value, or the initializer that it is."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._makers: dict[str, onnx.NodeProto] = {output: node for node in graph.node for output in node.output}
        self._constants: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in graph.initializer}

    def producer(self, value: str, op_type: str) -> onnx.NodeProto:
        """Return the node that produces the value. Raises PatternMismatch when it is not an `op_type` node."""
        if not self.is_output_of(value, op_type):
            raise PatternMismatch(f"{value} is not the output of {op_type}")
        return self._makers[value]

    def is_output_of(self, value: str, op_type: str) -> bool:
        return value in self._makers and self._makers[value].op_type == op_type

    def is_computed(self, value: str) -> bool:
        """Whether a node produces the value; False for initializers and graph inputs."""
        return value in self._makers

    def shape(self, constant: str) -> tuple[int, ...]:
        return tuple(self._constants[constant].dims)

    def constant(self, value: str) -> NDArray[Any]:
        """Return the contents of a small initializer. Raises PatternMismatch when the value is not an initializer."""
        if value not in self._constants:
            raise PatternMismatch(f"{value} is not an initializer")
        return numpy_helper.to_array(self._constants[value])


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Replace the nodes of the graph, then drop nodes, initializers and graph inputs that are no longer used."""
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


class FusedGraphBuilder:
    """Adds nodes, constants and weights to `graph`, which callers may also edit directly."""

    def __init__(self) -> None:
        self.graph = onnx.GraphProto(name="fused")
        self._constants: set[str] = set()
        self._weights: dict[str, tuple[NDArray[Any], int]] = {}

    def add_node(self, op_type: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:
        """Add a node, named after its first output; return that name."""
        node = helper.make_node(op_type, inputs, outputs, name=outputs[0], domain=domain, **attributes)
        self.graph.node.append(node)
        return outputs[0]

    def add_constant(self, name: str, array: NDArray[Any] | np.generic) -> str:
        """Add a small constant, unless there is one of that name; return the name."""
        return self.add_tensor(name, numpy_helper.from_array(np.asarray(array)))

    def add_tensor(self, name: str, tensor: onnx.TensorProto) -> str:
        """Add a small initializer given as a TensorProto, unless there is one of that name; return the name."""
        if name not in self._constants:
            self._constants.add(name)
            kept = self.graph.initializer.add()
            kept.CopyFrom(tensor)
            kept.name = name
        return name

    def add_weight(self, name: str, array: NDArray[Any], data_type: int) -> str:
        """Add a weight and return its name. Weights are kept outside the graph, which protobuf limits to 2 GiB."""
        if name not in self._weights:
            self._weights[name] = np.ascontiguousarray(array), data_type
            tensor = self.graph.initializer.add(name=name, data_type=data_type, dims=array.shape)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="outside the graph")
        return name

    def load(self, options: ort.SessionOptions) -> ort.InferenceSession:
        """Load the graph into a session. Raises whatever ONNX Runtime raises when it rejects the graph."""
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(self.graph, opset_imports=opsets, ir_version=IR_VERSION)
        kept = [tensor.name for tensor in self.graph.initializer if tensor.name in self._weights]
        options.add_external_initializers(kept, [_value(*self._weights[name]) for name in kept])
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _value(array: NDArray[Any], data_type: int) -> ort.OrtValue:
    """Return the array as an OrtValue that shares its memory, of a type that numpy may not have."""
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(f"u{array.itemsize}"), data_type)


def fuse_residual_norms(graph: onnx.GraphProto) -> None:
    """Replace Add + RMSNormalization with SkipSimplifiedLayerNormalization, which returns both the norm and the sum."""
    index = GraphIndex(graph)
    norms: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if node.op_type == "RMSNormalization" and index.is_output_of(node.input[0], "Add"):
            add = index.producer(node.input[0], "Add")
            if all(map(index.is_computed, add.input)):
                norms.setdefault(add.output[0], node)
    replaced = {node.output[0] for node in norms.values()}
    nodes = []
    for node in graph.node:
        if node.output[0] in norms:
            nodes.append(_fused(node, norms[node.output[0]]))
        elif node.output[0] not in replaced:
            nodes.append(node)
    replace_nodes(graph, nodes)


def _fused(add: onnx.NodeProto, norm: onnx.NodeProto) -> onnx.NodeProto:
    return helper.make_node(
        "SkipSimplifiedLayerNormalization",
        [*add.input, norm.input[1]],
        [norm.output[0], "", "", add.output[0]],
        name=norm.name,
        domain="com.microsoft",
        epsilon=attributes(norm)["epsilon"],
    )


def skip_round_trips(graph: onnx.GraphProto) -> None:
    """Remove pairs of casts from fp32 to the hidden state type and back.

    The first cast always starts from fp32, because layers compute in fp32.
    """
    index = GraphIndex(graph)
    originals = {}
    for node in graph.node:
        to_fp32 = node.op_type == "Cast" and attributes(node)["to"] == onnx.TensorProto.FLOAT
        if to_fp32 and index.is_output_of(node.input[0], "Cast"):
            originals[node.output[0]] = index.producer(node.input[0], "Cast").input[0]
    for node in graph.node:
        node.input[:] = [originals.get(name, name) for name in node.input]
    replace_nodes(graph, list(graph.node))
