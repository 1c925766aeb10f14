"""The .axmodel container: an ONNX model whose metadata lists the shape groups of the board's engine.

All groups share one graph with symbolic lengths. Group 0 is decode, groups 1..N are the prefill chunks; tensor names,
dtypes and shapes are those of the vendor's files. The two caches of group 1 are dummies [1, 1, hidden_size] that are
never read; `unused` names them, and the graph runs with caches of length 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo import __version__
from axzoo.core.dtypes import ONNX_DTYPES
from axzoo.core.errors import AxzooError
from axzoo.core.files import canonical_json
from axzoo.parts.groups import ShapeGroup, TensorSpec

if TYPE_CHECKING:
    import onnx  # at run time only where a file is written: the engine and the runtime do not need it

Pieces = tuple[bytes | memoryview, ...]
"""Consecutive pieces of a file, which avoid copying weights. A memoryview is one-dimensional with single-byte items."""

_LENGTH_DELIMITED = 2
"""The protobuf wire type of bytes and messages."""


def size(pieces: Pieces) -> int:
    """The total number of bytes."""
    return sum(map(len, pieces))


def field(number: int, content: Iterable[bytes | memoryview]) -> Pieces:
    """Encodes field `number` of a message; `content` is bytes or an encoded message."""
    pieces = tuple(content)
    return (varint(number << 3 | _LENGTH_DELIMITED) + varint(size(pieces)), *pieces)


def varint(value: int) -> bytes:
    """Encodes an integer with seven bits per byte, the lowest first; the high bit is set if another byte follows."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


OPSET = 23
IR_VERSION = 11
METADATA_KEY = "axzoo"
FORMAT = 1
POSITIONS = "rope.cos"
"""The initializer of a layer's graph with one row per supported position."""
SIZE_LIMIT = (1 << 31) - 1
"""The largest protobuf message in bytes."""


def value_info(tensor: TensorSpec, shape: list[int | str] | None = None) -> onnx.ValueInfoProto:
    """The graph input or output for a group's tensor; `shape` replaces its shape if lengths are symbolic."""
    from onnx import helper

    return helper.make_tensor_value_info(tensor.name, ONNX_DTYPES[tensor.dtype], shape or list(tensor.shape))


def serialize(graph: Pieces, kind: str, groups: tuple[ShapeGroup, ...], about: dict[str, Any]) -> Pieces:
    """The file's bytes in pieces. Equal arguments produce equal bytes.

    `graph` is a serialized onnx.GraphProto; `about` (plain JSON values) describes the build. Raises AxzooError when the
    file would exceed SIZE_LIMIT.
    """
    import onnx
    from onnx import helper

    producer = onnx.ModelProto(ir_version=IR_VERSION, producer_name="axzoo", producer_version=__version__)
    metadata = {"format": FORMAT, "kind": kind, "groups": [asdict(group) for group in groups], "about": about}
    rest = onnx.ModelProto(opset_import=[helper.make_opsetid("", OPSET)])
    rest.metadata_props.add(key=METADATA_KEY, value=canonical_json(metadata))
    pieces = (
        producer.SerializeToString(deterministic=True),
        *field(onnx.ModelProto.GRAPH_FIELD_NUMBER, graph),
        rest.SerializeToString(deterministic=True),
    )
    if size(pieces) > SIZE_LIMIT:
        raise AxzooError(
            f"the {kind} file would have {size(pieces)} bytes, and an ONNX file can have at most {SIZE_LIMIT}: "
            "use a smaller weight type"
        )
    return pieces


@dataclass(frozen=True)
class Header:
    """The metadata of an .axmodel."""

    kind: str
    groups: tuple[ShapeGroup, ...]
    about: dict[str, Any]


def parse_header(metadata: str | None, path: Path) -> Header:
    """Parses the metadata entry. Raises AxzooError when it is missing, damaged or has another format."""
    if metadata is None:
        raise AxzooError(f"{path} has no {METADATA_KEY!r} metadata: it was not built by axzoo")
    try:
        data = json.loads(metadata)
        if data["format"] != FORMAT:
            raise AxzooError(
                f"{path} has format {data['format']!r:.80}, but this axzoo reads format {FORMAT}: build it again"
            )
        groups = tuple(
            ShapeGroup(_tensors(group["inputs"]), _tensors(group["outputs"]), tuple(group["unused"]))
            for group in data["groups"]
        )
        if not groups:
            raise ValueError("no shape groups")
        return Header(data["kind"], groups, data["about"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AxzooError(f"{path} has damaged {METADATA_KEY!r} metadata ({error!r:.200}): build it again") from None


def _tensors(entries: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    for entry in entries:
        if entry["dtype"] not in ONNX_DTYPES:
            raise ValueError(f"dtype {entry['dtype']!r:.80}")
    return tuple(TensorSpec(entry["name"], entry["dtype"], tuple(map(index, entry["shape"]))) for entry in entries)
