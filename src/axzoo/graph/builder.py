"""Collecting nodes and initializers; every value is named after the node that makes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from axzoo.dtypes import NUMPY_DTYPES, ONNX_DTYPES

_BY_NUMPY = {NUMPY_DTYPES[name]: number for name, number in ONNX_DTYPES.items()}


class GraphBuilder:
    """An ONNX graph in the making."""

    def __init__(self) -> None:
        self._graph = onnx.GraphProto()  # built in place: the weights are held once

    def op(self, op_type: str, inputs: list[str], name: str, output: str | None = None, **attributes: Any) -> str:
        """Adds a node with one output and returns the output's name: the node's own, unless given."""
        value = output or name
        self._graph.node.append(helper.make_node(op_type, inputs, [value], name=name, **attributes))
        return value

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Adds an initializer, its bytes taken as they are, and returns its name."""
        tensor = self._graph.initializer.add(name=name, data_type=_BY_NUMPY[array.dtype], dims=array.shape)
        tensor.raw_data = np.ascontiguousarray(array).tobytes()
        return name

    def cast(self, value: str, dtype: str, name: str, output: str | None = None) -> str:
        return self.op("Cast", [value], name, output, to=ONNX_DTYPES[dtype])

    def graph(
        self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        """The finished graph."""
        self._graph.name = name
        self._graph.input.extend(inputs)
        self._graph.output.extend(outputs)
        return self._graph
