"""Finding nodes that belong together in a graph."""

from __future__ import annotations

from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper


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
