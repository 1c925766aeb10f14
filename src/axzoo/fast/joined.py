"""One graph made of several files' graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from axzoo.axmodel import IR_VERSION, METADATA_KEY, OPSET, Header, parse_header
from axzoo.errors import AxzooError
from axzoo.fast.blocks import BLOCK, block, fits

_INLINE = 1024
"""Bytes: larger weights are handed to the session beside the graph, which protobuf limits to 2 GiB."""


class Joined:
    """Graphs in the making of one. Where a file takes a value that another gives, they are joined there."""

    def __init__(self) -> None:
        self._graph = onnx.GraphProto(name="joined")
        self._inputs: dict[str, onnx.ValueInfoProto] = {}
        self._outputs: dict[str, onnx.ValueInfoProto] = {}
        self._weights: dict[str, tuple[NDArray[Any], int]] = {}

    def add(self, source: Path | bytes, path: Path, prefix: str = "", names: Mapping[str, str] | None = None) -> Header:
        """Adds a file, its values renamed to those in `names` or given the prefix; returns what it says of itself.

        DequantizeLinear + MatMul become MatMulNBits where the weights are whole blocks. Raises AxzooError when the file
        is damaged or not one that axzoo wrote.
        """
        model, header = _read(source, path)
        try:
            self._join(model, _Names(prefix, names or {}))
        except (ValueError, TypeError, LookupError) as error:
            raise AxzooError(f"{path} cannot be loaded ({error!r}): build it again") from None
        return header

    def session(self, options: ort.SessionOptions) -> ort.InferenceSession:
        """The graph, loaded. Raises AxzooError when it is none that ONNX Runtime runs."""
        graph = self._graph
        graph.input.extend(self._inputs.values())
        graph.output.extend(self._outputs.values())
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        values = [_value(array, data_type) for array, data_type in self._weights.values()]
        options.add_external_initializers(list(self._weights), values)
        try:
            return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own classes share no base class
            raise AxzooError(f"the model's files cannot be loaded together ({error}): build them again") from None

    def _join(self, model: onnx.ModelProto, renamed: _Names) -> None:
        for value in model.graph.input:
            value.name = renamed[value.name]
            if self._outputs.pop(value.name, None) is None:
                self._inputs.setdefault(value.name, value)
        for value in model.graph.output:
            value.name = renamed[value.name]
            self._outputs[value.name] = value
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        dequantized = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
        blocked = {name: node for name, node in dequantized.items() if _is_blocked(node, constants)}
        for node in model.graph.node:
            if node.output[0] in blocked:
                continue
            if node.op_type == "MatMul" and node.input[1] in blocked:
                node = self._integer_matmul(node, blocked[node.input[1]], constants, renamed)
            else:
                for name in node.input:
                    if name in constants:
                        self._keep(constants[name], renamed[name])
                node.input[:] = [renamed[name] for name in node.input]
            node.output[:] = [renamed[name] for name in node.output]
            node.name = renamed.prefix + node.name
            self._graph.node.append(node)

    def _integer_matmul(
        self,
        matmul: onnx.NodeProto,
        dequantize: onnx.NodeProto,
        constants: Mapping[str, onnx.TensorProto],
        names: _Names,
    ) -> onnx.NodeProto:
        codes, scales = (numpy_helper.to_array(constants[name]) for name in dequantize.input)
        packed, spread = block(codes, np.atleast_2d(scales))
        weight, scale = (names[name] for name in dequantize.input)
        self._add_weight(weight, packed, onnx.TensorProto.UINT8)
        self._add_weight(scale, spread, onnx.TensorProto.FLOAT)
        return helper.make_node(
            "MatMulNBits",
            [names[matmul.input[0]], weight, scale],
            list(matmul.output),
            name=matmul.name,
            domain="com.microsoft",
            K=codes.shape[0],
            N=codes.shape[1],
            bits=8 if codes.dtype == np.int8 else 4,
            block_size=BLOCK,
            accuracy_level=4,  # int8 activations
        )

    def _keep(self, tensor: onnx.TensorProto, name: str) -> None:
        """A constant as it is."""
        if len(tensor.raw_data) > _INLINE and tensor.data_type != onnx.TensorProto.INT4:
            self._add_weight(name, numpy_helper.to_array(tensor), tensor.data_type)
        elif name not in {kept.name for kept in self._graph.initializer}:
            kept = self._graph.initializer.add()
            kept.CopyFrom(tensor)
            kept.name = name

    def _add_weight(self, name: str, array: NDArray[Any], data_type: int) -> None:
        if name in self._weights:
            return
        self._weights[name] = np.ascontiguousarray(array), data_type
        tensor = self._graph.initializer.add(name=name, data_type=data_type, dims=array.shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="beside the graph")


class _Names(dict[str, str]):
    """What values are called in the joined graph; an input left out has no name in either."""

    def __init__(self, prefix: str, names: Mapping[str, str]) -> None:
        super().__init__(names)
        self[""] = ""
        self.prefix = prefix

    def __missing__(self, name: str) -> str:
        return self.prefix + name


def _read(source: Path | bytes, path: Path) -> tuple[onnx.ModelProto, Header]:
    try:
        model = onnx.load_model_from_string(source if isinstance(source, bytes) else source.read_bytes())
    except FileNotFoundError:
        raise AxzooError(f"{path} is missing: build the bundle again") from None
    except DecodeError as error:
        raise AxzooError(f"{path} cannot be loaded ({error}): build it again") from None
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise AxzooError(f"{path} has weights outside itself, which a file of axzoo's never has: build it again")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return model, parse_header(metadata.get(METADATA_KEY), path)


def _is_blocked(dequantize: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    weight, scale = (constants[name] for name in dequantize.input)
    integers = weight.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.INT4)
    groups = scale.dims[0] if len(scale.dims) == 2 else 1
    return integers and len(scale.dims) > 0 and fits(weight.dims[0], groups)


def _value(array: NDArray[Any], data_type: int) -> ort.OrtValue:
    """The array's memory, not a copy, as numbers of a type that numpy may lack."""
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(f"u{array.itemsize}"), data_type)
