"""Collects the nodes and initializers of a graph. Values are named after the node that computes them."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from axzoo.backends.host.container import Pieces, field
from axzoo.core.dtypes import NUMPY_DTYPES, ONNX_DTYPES


def pack_int4(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """int4 codes of any shape -> bytes [ceil(size / 2)], two codes per byte, the first in the low nibble.

    If the number of codes is odd, the last nibble is 0 (onnx.proto, TensorProto.raw_data).
    """
    nibbles = codes.reshape(-1).view(np.uint8)
    packed = nibbles[0::2] & np.uint8(0x0F)
    packed[: nibbles.size // 2] |= nibbles[1::2] << np.uint8(4)
    return packed


_BY_NUMPY = {NUMPY_DTYPES[name]: number for name, number in ONNX_DTYPES.items()}


class GraphBuilder:
    """Builds an ONNX graph."""

    def __init__(self) -> None:
        self._nodes = onnx.GraphProto()
        self._initializers: list[Pieces] = []

    def op(self, op_type: str, inputs: list[str], name: str, output: str | None = None, **attributes: Any) -> str:
        """Adds a node with one output and returns the output's name, by default the node's name."""
        value = output or name
        self.node(op_type, inputs, [value], name, **attributes)
        return value

    def node(self, op_type: str, inputs: list[str], outputs: list[str], name: str, **attributes: Any) -> None:
        """Adds a node with any number of outputs."""
        self._nodes.node.append(helper.make_node(op_type, inputs, outputs, name=name, **attributes))

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Adds an initializer with the array's bytes (int4: packed, two per byte) and returns its name.

        A contiguous array is not copied, so it must not change afterwards.
        """
        tensor = onnx.TensorProto(name=name, data_type=_BY_NUMPY[array.dtype], dims=array.shape)
        content = pack_int4(array) if array.dtype == NUMPY_DTYPES["int4"] else array
        raw = np.ascontiguousarray(content).reshape(-1).view(np.uint8).data
        fields = (tensor.SerializeToString(deterministic=True), *field(onnx.TensorProto.RAW_DATA_FIELD_NUMBER, [raw]))
        self._initializers.append(field(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, fields))
        return name

    def cast(self, value: str, dtype: str, name: str, output: str | None = None) -> str:
        return self.op("Cast", [value], name, output, to=ONNX_DTYPES[dtype])

    def graph(self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> Pieces:
        """The complete graph as a serialized onnx.GraphProto, with its fields in ascending order."""
        self._nodes.name = name
        nodes = self._nodes.SerializeToString(deterministic=True)
        ends = onnx.GraphProto(input=inputs, output=outputs).SerializeToString(deterministic=True)
        return (nodes, *chain.from_iterable(self._initializers), ends)
