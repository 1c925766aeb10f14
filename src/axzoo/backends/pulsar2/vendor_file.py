"""Reads the container of files that the vendor's compiler writes: an ONNX model with opaque nodes.

Each node, of type "neu mode", is one shape group. Its attributes name a compiled program and the weight table
`npu_params`, which all groups share; both are initializers of bytes. docs/vendor.md says where this is known from.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from axzoo.backends.host.outline import DeclaredTensor, map_file, outline_of
from axzoo.backends.host.protobuf import Message
from axzoo.core.errors import AxzooError

NODE_TYPE = "neu mode"
"""The operator of a shape group."""
TABLE = "npu_params"
"""The initializer with the weights of all groups."""
_IGNORED = "npu_dyn_params"
"""An empty initializer of the files of vision models."""
_METADATA = "extra_data"

LAYER_FILE = re.compile(r"(?P<stem>.+)_l(?P<index>\d{1,4})(?P<tail>_together)?\.axmodel")
POST_FILE = re.compile(r".+_post\.axmodel")
"""Names of compiled files."""
_NUMBERED = re.compile(r"(.+)_(\d{1,3})")

MAX_GROUPS = 256
"""The limit on shape groups, which bounds the work per file. Published files have at most 17."""
MAX_JSON_BYTES = 1 << 20

_GRAPH, _METADATA_ENTRIES, _PRODUCER, _DOC_STRING = 7, 14, 2, 6  # ModelProto
_NODES, _INITIALIZERS = 1, 5  # GraphProto
_NODE_INPUTS, _NODE_OUTPUTS, _OP_TYPE, _ATTRIBUTES = 1, 2, 4, 5  # NodeProto
_ATTRIBUTE_NAME, _ATTRIBUTE_TEXT = 1, 4  # AttributeProto
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9  # TensorProto
_UINT8 = 2


def numbered(name: str, group: int) -> str:
    """A tensor's name as the file has it: groups after the first add their number."""
    return f"{name}_{group}" if group else name


def without_number(name: str, group: int) -> str:
    """The name without the number of its group."""
    return name.removesuffix(f"_{group}") if group else name


def split_number(name: str) -> tuple[str, int]:
    """A tensor's name without the number of its group, and that number."""
    match = _NUMBERED.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, 0)


def program_name(group: int) -> str:
    """The initializer with a group's program, in files of layers and post layers."""
    return f"subgraph_npu_{group}_b1_neu"


@dataclass(frozen=True)
class VendorGroup:
    """One shape group. `program` names its compiled program, of `program_bytes` bytes.

    Tensors have their names without the suffix `_g` of group g > 0. Group 0 is decode.
    """

    program: str
    program_bytes: int
    inputs: tuple[DeclaredTensor, ...]
    outputs: tuple[DeclaredTensor, ...]


@dataclass(frozen=True)
class VendorFile:
    """A file of the vendor's compiler. `table` is a view of the weight table, which starts at byte `offset`.

    `version` is the compiler's description of itself, `size` the file's size in bytes.
    """

    path: Path
    version: str
    size: int
    offset: int
    table: memoryview
    groups: tuple[VendorGroup, ...]

    def shape(self, name: str, group: int = 0) -> tuple[int | str, ...] | None:
        """The shape of a group's input or output; None if it has no such tensor."""
        tensors = (*self.groups[group].inputs, *self.groups[group].outputs)
        return next((tensor.shape for tensor in tensors if tensor.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """All fields but the table's bytes as plain data."""
        return {
            "file": str(self.path),
            "version": self.version,
            "size": self.size,
            "weight_table": {"offset": self.offset, "bytes": len(self.table)},
            "groups": [asdict(group) for group in self.groups],
        }


def is_vendor_file(path: Path) -> bool:
    """Whether the file has the form in which the vendor's compiler writes them."""
    try:
        read_vendor_file(path)
    except (AxzooError, OSError):
        return False
    return True


def read_vendor_file(path: Path) -> VendorFile:
    """Reads a file of the vendor's compiler; the weights are mapped, not read.

    Raises AxzooError, in one sentence, when the file is damaged, incomplete, or not of the documented form.
    """
    if path.is_dir():
        raise AxzooError(f"{path} is a folder: name one of the .axmodel files in it")
    try:
        return _vendor_file(path, memoryview(map_file(path)))
    except (ValueError, RecursionError) as error:
        reason = "its JSON is nested too deeply" if isinstance(error, RecursionError) else f"{error!s:.200}"
        raise AxzooError(
            f"{path} is damaged or not a file of the vendor's compiler ({reason}): compile or copy it again"
        ) from None


def _vendor_file(path: Path, content: memoryview) -> VendorFile:
    outline = outline_of(content.obj)  # type: ignore[arg-type]  # bytes or mmap
    model = Message(content)
    graphs = model.views(_GRAPH)
    if len(graphs) != 1:
        raise ValueError(f"it has {len(graphs)} graphs")
    if not outline.opsets or _METADATA not in outline.metadata:
        raise ValueError(f"it is incomplete: it has no opset or no metadata {_METADATA!r}")
    graph = Message(graphs[0])
    nodes = list(graph.messages(_NODES))
    if not 1 <= len(nodes) <= MAX_GROUPS:
        raise ValueError(f"it has {len(nodes)} nodes, but files have 1 to {MAX_GROUPS} shape groups")
    blobs = dict(_blobs(graph))
    if TABLE not in blobs:
        raise ValueError(f"it has no initializer {TABLE!r}")
    declared = {tensor.name: tensor for tensor in (*outline.inputs, *outline.outputs)}
    groups = tuple(_group(index, node, blobs, declared) for index, node in enumerate(nodes))
    used = {TABLE, _IGNORED, *(group.program for group in groups)}
    if strangers := sorted(blobs.keys() - used):
        raise ValueError(f"no node uses the initializer {strangers[0]!r:.80}")
    if len({group.program for group in groups}) < len(groups):
        raise ValueError("two shape groups name one program")
    table = blobs[TABLE]
    return VendorFile(path, model.text(_DOC_STRING), len(content), _offset(content, table), table, groups)


def _blobs(graph: Message) -> Iterator[tuple[str, memoryview]]:
    """The initializers by name. Raises ValueError for two of one name, and for any that are not raw bytes."""
    seen = set()
    for tensor in graph.messages(_INITIALIZERS):
        name, dims, raw = tensor.text(_NAME), tensor.integers(_DIMS), tensor.views(_RAW_DATA)
        if name in seen:
            raise ValueError(f"it has two initializers {name!r:.80}")
        seen.add(name)
        if tensor.integer(_DATA_TYPE) != _UINT8 or len(dims) != 1:
            raise ValueError(f"initializer {name!r:.80} is not a list of bytes")
        length = len(raw[0]) if len(raw) == 1 else 0
        if len(raw) > 1 or length != dims[0]:
            raise ValueError(f"initializer {name!r:.80} has {length} bytes instead of {dims[0]}")
        yield name, raw[0] if raw else memoryview(b"")


def _offset(content: memoryview, part: memoryview) -> int:
    """Where a view of the content starts; 0 if it is empty."""
    if not len(part):
        return 0
    start, base = (np.frombuffer(view, np.uint8).__array_interface__["data"][0] for view in (part, content))
    return int(start - base)


def _group(
    index: int, node: Message, blobs: Mapping[str, memoryview], declared: Mapping[str, DeclaredTensor]
) -> VendorGroup:
    if (kind := node.text(_OP_TYPE)) != NODE_TYPE:
        raise ValueError(f"it has a node of type {kind!r:.80}")
    attributes = {entry.text(_ATTRIBUTE_NAME): entry.views(_ATTRIBUTE_TEXT) for entry in node.messages(_ATTRIBUTES)}
    info = _json(attributes.get("npu_graph_info", []), "npu_graph_info")
    try:
        (dotneu,) = info["dotneus"]
        program = dotneu["neu_key"]
        tables = [entry["const_data_key"] for entry in dotneu.get("extra_inputs", info.get("extra_inputs"))]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"npu_graph_info of group {index} does not name one program and its weights") from None
    if not isinstance(program, str) or program in (TABLE, _IGNORED) or program not in blobs:
        raise ValueError(f"group {index} names a program that the file does not have, {program!r:.80}")
    if TABLE not in tables:
        raise ValueError(f"group {index} does not use {TABLE!r}")
    sides = (node.texts(_NODE_INPUTS), node.texts(_NODE_OUTPUTS))
    if unknown := next((name for name in (*sides[0], *sides[1]) if name not in declared), None):
        raise ValueError(f"group {index} has a tensor {unknown!r:.80} that the graph does not declare")
    inputs, outputs = (tuple(_without_suffix(declared[name], index) for name in names) for names in sides)
    return VendorGroup(program, len(blobs[program]), inputs, outputs)


def _json(values: list[memoryview], name: str) -> Any:
    if len(values) != 1 or len(values[0]) > MAX_JSON_BYTES:
        raise ValueError(f"a node has no attribute {name} of at most {MAX_JSON_BYTES} bytes")
    return json.loads(bytes(values[0]))


def _without_suffix(tensor: DeclaredTensor, group: int) -> DeclaredTensor:
    lengths = [length for length in tensor.shape if isinstance(length, int)]
    if len(lengths) < len(tensor.shape) or math.prod(lengths) >= 1 << 63:
        raise ValueError(f"tensor {tensor.name!r:.80} has no fixed shape")
    return DeclaredTensor(without_number(tensor.name, group), tensor.dtype, tensor.shape)
