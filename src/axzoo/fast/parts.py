"""A graph in the making, and the weights it is loaded with."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from axzoo.axmodel import IR_VERSION, OPSET


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
