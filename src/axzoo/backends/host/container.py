"""The .axmodel container: an ONNX model whose metadata lists the shape groups the board's engine offers.

One graph with symbolic lengths serves every group. Group 0 is decode, groups 1..N are the prefill chunks; tensor names,
dtypes and shapes are those of the vendor's files. In group 1 the two caches are dummies [1, 1, hidden_size] whose
content nobody reads: `unused` names them, and the graph is run with caches of length 0.
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
    import onnx  # imported where a file is written: the engine and the runtime only read


Pieces = tuple[bytes | memoryview, ...]
"""Bytes in consecutive pieces, none of them joined; a memoryview is one-dimensional and of single bytes."""

_LENGTH_DELIMITED = 2
"""The wire type of bytes and of messages."""


def size(pieces: Pieces) -> int:
    """Bytes of all pieces together."""
    return sum(map(len, pieces))


def field(number: int, content: Iterable[bytes | memoryview]) -> Pieces:
    """Field `number` of a message with `content`: raw bytes, or another message."""
    pieces = tuple(content)
    return (_varint(number << 3 | _LENGTH_DELIMITED) + _varint(size(pieces)), *pieces)


def _varint(value: int) -> bytes:
    """Seven bits to a byte, the lowest first; the high bit says that another byte follows."""
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
"""The initializer that has a row for each position a layer's graph knows."""
SIZE_LIMIT = (1 << 31) - 1
"""Bytes: protobuf reads no larger message."""


def value_info(tensor: TensorSpec, shape: list[int | str] | None = None) -> onnx.ValueInfoProto:
    """The graph's declaration of a group's tensor, with `shape` where lengths are symbolic."""
    from onnx import helper

    return helper.make_tensor_value_info(tensor.name, ONNX_DTYPES[tensor.dtype], shape or list(tensor.shape))


def serialize(graph: Pieces, kind: str, groups: tuple[ShapeGroup, ...], about: dict[str, Any]) -> Pieces:
    """The file's bytes, in pieces; equal arguments give equal bytes.

    `graph` is a serialized onnx.GraphProto, `about` (plain JSON values) says what was built and how. Raises AxzooError
    when the file would be larger than protobuf can read.
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
            f"the {kind} file would have {size(pieces)} bytes, and an ONNX file holds at most {SIZE_LIMIT}: "
            "choose a smaller weight type"
        )
    return pieces


@dataclass(frozen=True)
class Header:
    """What an .axmodel says of itself."""

    kind: str
    groups: tuple[ShapeGroup, ...]
    about: dict[str, Any]


def parse_header(metadata: str | None, path: Path) -> Header:
    """Reads the metadata entry. Raises AxzooError when the file is not one that axzoo wrote."""
    if metadata is None:
        raise AxzooError(f"{path} has no {METADATA_KEY!r} metadata: it was not built by axzoo")
    try:
        data = json.loads(metadata)
        if data["format"] != FORMAT:
            raise AxzooError(f"{path} has format {data['format']!r:.80}, this axzoo reads {FORMAT}: build it again")
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
