"""What an .axmodel's header and its graph owe each other, and what a stranger's file may ask for before it is loaded.

Everything is checked against the file's own bytes, before ONNX Runtime or a cache takes any memory.
"""

from __future__ import annotations

import math
from pathlib import Path

from axzoo.backends.host.container import METADATA_KEY, POSITIONS, Header, parse_header
from axzoo.backends.host.outline import Declared, Outline, Stored, mapped, outline_of
from axzoo.core.dtypes import NUMPY_DTYPES
from axzoo.core.errors import AxzooError
from axzoo.parts.groups import ShapeGroup, TensorSpec, layer_group

OPERATORS = frozenset(
    ("Add", "Attention", "Cast", "Concat", "DequantizeLinear", "GatherElements", "Gelu", "GreaterOrEqual",
     "LayerNormalization", "MatMul", "Mul", "RMSNormalization", "Range", "Reshape", "RotaryEmbedding", "Shape",
     "Sigmoid", "Softmax", "Squeeze", "Sub", "TopK", "Unsqueeze", "Where")
)  # fmt: skip
"""All that axzoo writes: none holds a graph of its own, reads a file, or draws random numbers."""

LEAST_BYTES = 16 << 20
"""Any file may ask for tensors of as many bytes together, and for thirty times its own size more."""
_STATES = ("fp32", "fp16", "bf16")


def loadable_header(source: Path | bytes, path: Path) -> Header:
    """What the file says of itself, when it may be loaded: its groups are a layer's or a post layer's, its graph
    declares their tensors, computes with axzoo's operators on weights that the file holds, and nothing is longer than
    the file backs.

    Raises AxzooError, naming the file `path`, when it is missing, damaged, or asks for more.
    """
    if isinstance(source, Path) and not source.is_file():
        raise AxzooError(f"{path} is missing: build the bundle again")
    try:
        outline = outline_of(source if isinstance(source, bytes) else mapped(source))
        header = parse_header(outline.metadata.get(METADATA_KEY), path)
        _check_graph(outline)
        for group in header.groups:
            _check_lengths(group, outline.size)
        _check_kind(header, outline)
        if not all(declares(outline, group) for group in header.groups):
            raise ValueError("its graph declares other inputs or outputs than its shape groups have")
    except (ValueError, LookupError) as error:
        raise AxzooError(f"{path} cannot be loaded ({error!s:.200}): build it again") from None
    return header


def declares(outline: Outline, group: ShapeGroup) -> bool:
    """Whether the graph's inputs and outputs are the group's; where the graph leaves a length open, any will do."""
    return _are(outline.inputs, group.inputs, group.unused) and _are(outline.outputs, group.outputs, ())


def _are(declared: tuple[Declared, ...], tensors: tuple[TensorSpec, ...], unused: tuple[str, ...]) -> bool:
    if [tensor.name for tensor in declared] != [tensor.name for tensor in tensors]:
        return False
    pairs = zip(declared, tensors, strict=True)
    return all(tensor.name in unused or _fits(said, tensor) for said, tensor in pairs)


def _fits(declared: Declared, tensor: TensorSpec) -> bool:
    if declared.dtype != tensor.dtype or len(declared.shape) != len(tensor.shape):
        return False
    lengths = zip(declared.shape, tensor.shape, strict=True)
    return all(isinstance(said, str) or said == length for said, length in lengths)


def _check_graph(outline: Outline) -> None:
    strange = sorted(set(outline.operators) - OPERATORS)
    if strange or outline.functions:
        raise ValueError(f"it computes with {strange[0] if strange else 'functions'!r:.80}, which axzoo never writes")
    for tensor in outline.tensors:
        if tensor.external:
            raise ValueError("it has weights outside itself, which a file of axzoo's never has")
        if tensor.bytes != _bytes(tensor):
            raise ValueError(f"tensor {tensor.name!r:.80} has {tensor.bytes} bytes, its shape asks for others")


def _bytes(tensor: Stored) -> int:
    count = math.prod(tensor.shape)
    return -(-count // 2) if tensor.dtype == "int4" else count * NUMPY_DTYPES[tensor.dtype].itemsize


def _check_lengths(group: ShapeGroup, file_size: int) -> None:
    tensors = (*group.inputs, *group.outputs)
    if any(length < 1 for tensor in tensors for length in tensor.shape):
        raise ValueError("a shape group has a tensor without values")
    asked = sum(math.prod(tensor.shape) * NUMPY_DTYPES[tensor.dtype].itemsize for tensor in tensors)
    if asked > LEAST_BYTES + 30 * file_size:
        raise ValueError(f"its shape groups ask for tensors of {asked} bytes, far more than a file of {file_size} can")


def _check_kind(header: Header, outline: Outline) -> None:
    if header.kind == "decoder_layer":
        _check_layer(header.groups, _rows(outline))
    elif header.kind == "post":
        _check_post(header.groups)
    else:
        raise ValueError(f"it is a {header.kind!r:.80}, neither a decoder layer nor a post layer")


def _check_layer(groups: tuple[ShapeGroup, ...], rows: int | None) -> None:
    """Decode, then a chunk behind 0, 1, 2 ... chunks, at positions that the rope's tables of `rows` rows know, if it
    has any."""
    cache, state = groups[0].inputs[0], groups[0].inputs[3]
    if state.dtype not in _STATES or len(cache.shape) != 3 or len(state.shape) != 3:
        raise ValueError("its shape groups are not a decoder layer's")
    _, cached, width = cache.shape
    chunk = groups[1].inputs[2].shape[-1] if len(groups) > 1 else 1
    sizes = [(1, cached), *((chunk, chunk * index) for index in range(len(groups) - 1))]
    for group, (tokens, past) in zip(groups, sizes, strict=True):
        if group != layer_group(state.dtype, state.shape[2], width, tokens, past):
            raise ValueError("its shape groups are not a decoder layer's")
    longest = max(cached, chunk * (len(groups) - 1))
    if rows is not None and longest > rows:
        raise ValueError(f"its shape groups reach {longest} tokens, its graph knows {rows} positions")


def _rows(outline: Outline) -> int | None:
    """Positions for which the graph holds the rope's cosines, or None if it does not rotate."""
    if "RotaryEmbedding" not in outline.operators:
        return None
    shapes = [tensor.shape for tensor in outline.tensors if tensor.name == POSITIONS]
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise ValueError("its graph has no table of positions")
    return shapes[0][0]


def _check_post(groups: tuple[ShapeGroup, ...]) -> None:
    names = [tensor.name for tensor in groups[0].outputs]
    likeliest = names[:2] == ["indices", "prob"]
    if (
        len(groups) != 1
        or [tensor.name for tensor in groups[0].inputs] != ["input"]
        or groups[0].inputs[0].dtype not in _STATES
        or any(len(tensor.shape) != 3 or tensor.shape[:2] != (1, 1) for tensor in groups[0].inputs + groups[0].outputs)
        or names[2 if likeliest else 1 :] not in ([], ["postnorm"])
        or not (likeliest or names[:1] == ["output"])
        or groups[0].unused
    ):
        raise ValueError("its shape group is not a post layer's")
