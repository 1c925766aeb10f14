"""Collecting nodes and initializers; every value is named after the node that makes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from axzoo.dtypes import NUMPY_DTYPES, ONNX_DTYPES

_BY_NUMPY = {NUMPY_DTYPES[name]: number for name, number in ONNX_DTYPES.items()}


class GraphBuilder:
    """An ONNX graph in the making."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def op(self, op_type: str, inputs: list[str], name: str, output: str | None = None, **attributes: Any) -> str:
        """Adds a node with one output and returns the output's name: the node's own, unless given."""
        value = output or name
        self._nodes.append(helper.make_node(op_type, inputs, [value], name=name, **attributes))
        return value

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Adds an initializer, its bytes taken as they are, and returns its name."""
        tensor = TensorProto(name=name, data_type=_BY_NUMPY[array.dtype], dims=array.shape)
        tensor.raw_data = np.ascontiguousarray(array).tobytes()
        self._initializers.append(tensor)
        return name

    def cast(self, value: str, dtype: str, name: str, output: str | None = None) -> str:
        return self.op("Cast", [value], name, output, to=ONNX_DTYPES[dtype])

    def graph(
        self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        return onnx.GraphProto(
            name=name, node=self._nodes, initializer=self._initializers, input=inputs, output=outputs
        )
