"""Reads the outline of an ONNX model: everything except the weights.

The onnx package would load the whole file into memory. Field numbers:
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from axzoo.backends.host.protobuf import Message
from axzoo.core.dtypes import ONNX_DTYPES
from axzoo.core.errors import AxzooError
from axzoo.core.files import open_regular

_FOREIGN_DTYPES = {
    2: "uint8", 4: "uint16", 5: "int16", 8: "string", 9: "bool", 11: "fp64", 13: "uint64",
    18: "float8_e4m3fnuz", 20: "float8_e5m2fnuz", 21: "uint4", 23: "float4_e2m1",
}  # fmt: skip
_DTYPES = {number: name for name, number in ONNX_DTYPES.items()} | _FOREIGN_DTYPES

_MAX_DIMENSIONS = 64
_DATA_FIELDS = (4, 5, 6, 7, 9, 10, 11)  # TensorProto: float_data ... raw_data ... uint64_data
_EXTERNAL = 1  # TensorProto.DataLocation


@dataclass(frozen=True)
class DeclaredTensor:
    """An input or output of the graph. A symbolic length is its name, or "?" if it has none."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Initializer:
    """An initializer. `bytes` is the size of its values in the file; `external` ones are stored in another file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    external: bool


@dataclass(frozen=True)
class Outline:
    """What a model declares. `opsets` are versions by domain, `operators` counts by type, `functions` is the number of
    functions that the model defines."""

    size: int
    ir_version: int
    producer_name: str
    producer_version: str
    doc_string: str
    opsets: dict[str, int]
    operators: dict[str, int]
    functions: int
    inputs: tuple[DeclaredTensor, ...]
    outputs: tuple[DeclaredTensor, ...]
    tensors: tuple[Initializer, ...]
    metadata: dict[str, str]


def read_outline(path: Path) -> Outline:
    """Reads the outline of an ONNX file from any producer. Reads only the pages it needs.

    Raises AxzooError when the file is damaged or not an ONNX model.
    """
    if path.is_dir():
        raise AxzooError(f"{path} is a folder: name one of the .axmodel files in it")
    try:
        return outline_of(map_file(path))
    except ValueError as error:
        raise AxzooError(f"{path} is damaged or not an ONNX model ({error}): build or fetch it again") from None


def map_file(path: Path) -> bytes | mmap.mmap:
    """Maps a file into memory."""
    with open_regular(path) as file:
        empty = not os.fstat(file.fileno()).st_size  # an empty file cannot be mapped
        return b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def outline_of(content: bytes | mmap.mmap) -> Outline:
    """The outline of a serialized model. Raises ValueError when it is damaged or not an ONNX model."""
    return _outline(Message(memoryview(content)), len(content))


def _outline(model: Message, size: int) -> Outline:
    graphs = list(model.messages(7))
    if 1 not in model or not graphs:
        raise ValueError("it has no ir_version and graph")
    operators = Counter(node.text(4) for graph in graphs for node in graph.messages(1))
    return Outline(
        size=size,
        ir_version=model.integer(1),
        producer_name=model.text(2),
        producer_version=model.text(3),
        doc_string=model.text(6),
        opsets={opset.text(1): opset.integer(2) for opset in model.messages(8)},
        operators=dict(operators.most_common()),
        functions=len(model.views(25)),
        inputs=tuple(_declared_tensor(value) for graph in graphs for value in graph.messages(11)),
        outputs=tuple(_declared_tensor(value) for graph in graphs for value in graph.messages(12)),
        tensors=tuple(_initializer(tensor) for graph in graphs for tensor in graph.messages(5)),
        metadata={entry.text(1): entry.text(2) for entry in model.messages(14)},
    )


def _declared_tensor(value: Message) -> DeclaredTensor:
    """Decodes a ValueInfoProto: type, tensor_type, then elem_type and shape. Values of other types have neither."""
    tensors = [tensor for kind in value.messages(2) for tensor in kind.messages(1)]
    dtype = tensors[-1].integer(1) if tensors else 0
    lengths = [length for tensor in tensors for shape in tensor.messages(2) for length in shape.messages(1)]
    shape = tuple(length.integer(1) if 1 in length else length.text(2) or "?" for length in lengths)
    return DeclaredTensor(value.text(1), _dtype(dtype), shape)


def _initializer(tensor: Message) -> Initializer:
    shape = tuple(tensor.integers(1))
    if len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"a tensor has {len(shape)} dimensions")
    size = sum(len(view) for number in _DATA_FIELDS for view in tensor.views(number))
    return Initializer(tensor.text(8), _dtype(tensor.integer(2)), shape, size, tensor.integer(14) == _EXTERNAL)


def _dtype(number: int) -> str:
    return _DTYPES.get(number, f"dtype {number}")
