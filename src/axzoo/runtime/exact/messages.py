"""Writes small ONNX models without the onnx package, which would take longer to import than a model takes to load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from axzoo.backends.host.container import IR_VERSION, OPSET, field, varint
from axzoo.core.dtypes import ONNX_DTYPES

Bytes = bytes | memoryview


@dataclass(frozen=True)
class Graph:
    """The serialized messages of a graph: NodeProto, TensorProto and ValueInfoProto."""

    nodes: Sequence[Bytes]
    initializers: Sequence[Bytes]
    inputs: Sequence[Bytes]
    outputs: Sequence[Bytes]

    def model(self) -> bytes:
        """The graph as a serialized ModelProto."""
        parts = {1: self.nodes, 2: [b"graph"], 5: self.initializers, 11: self.inputs, 12: self.outputs}
        fields = [field(number, [message]) for number, messages in parts.items() for message in messages]
        opset = _message(field(1, [b""]), _integer(2, OPSET))
        return _message(_integer(1, IR_VERSION), field(7, [_message(*fields)]), field(8, [opset]))


def node(op_type: str, inputs: Iterable[str], output: str, attributes: Mapping[str, int] | None = None) -> bytes:
    """A NodeProto."""
    integers = [
        _message(field(1, [name.encode()]), _integer(3, value), _integer(20, 2))  # AttributeProto: name, i, type INT
        for name, value in (attributes or {}).items()
    ]
    return _message(
        *(field(1, [name.encode()]) for name in inputs),
        field(2, [output.encode()]),
        field(4, [op_type.encode()]),
        *(field(5, [attribute]) for attribute in integers),
    )


def value(name: str, dtype: int = ONNX_DTYPES["fp32"]) -> bytes:
    """A ValueInfoProto: a tensor of any shape."""
    return _message(field(1, [name.encode()]), field(2, field(1, _integer(1, dtype))))


def _integer(number: int, content: int) -> tuple[bytes, ...]:
    return (varint(number << 3), varint(content))


def _message(*fields: Iterable[Bytes]) -> bytes:
    return b"".join(piece for one in fields for piece in one)
