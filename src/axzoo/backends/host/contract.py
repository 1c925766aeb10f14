"""Checks an untrusted .axmodel before it is loaded: its header and graph must match, and its sizes must be plausible.

All checks use the file's bytes alone, before ONNX Runtime or a KV cache allocates memory.
"""

from __future__ import annotations

import math
from pathlib import Path

from axzoo.backends.host.container import METADATA_KEY, POSITIONS, Header, parse_header
from axzoo.backends.host.outline import DeclaredTensor, Initializer, Outline, map_file, outline_of
from axzoo.core.dtypes import NUMPY_DTYPES
from axzoo.core.errors import AxzooError
from axzoo.parts.groups import ShapeGroup, TensorSpec, layer_group

OPERATORS = frozenset(
    ("Add", "Attention", "Cast", "Concat", "DequantizeLinear", "Div", "Gather", "GatherElements", "Gelu",
     "GreaterOrEqual", "LayerNormalization", "MatMul", "Mul", "RMSNormalization", "Range", "Reshape",
     "RotaryEmbedding", "Shape", "Sigmoid", "Slice", "Softmax", "SpaceToDepth", "Squeeze", "Sub", "TopK", "Transpose",
     "Unsqueeze", "Where")
)  # fmt: skip
"""All operators that axzoo writes. None of them contains a subgraph, reads a file or uses random numbers."""

BASE_TENSOR_BYTES = 16 << 20
"""The tensors of a shape group may have this size in total, plus 30 times the size of the file."""
_STATES = ("fp32", "fp16", "bf16")


def loadable_header(source: Path | bytes, path: Path) -> Header:
    """The header of a file that is safe to load: its groups are those of a decoder or post layer, its graph declares
    the same tensors, uses only axzoo's operators and weights inside the file, and its tensors are not too large.

    Raises AxzooError with the name `path` when the file is missing, damaged or not safe to load.
    """
    if isinstance(source, Path) and not source.is_file():
        raise AxzooError(f"{path} is missing: build the bundle again")
    try:
        outline = outline_of(source if isinstance(source, bytes) else map_file(source))
        header = parse_header(outline.metadata.get(METADATA_KEY), path)
        _check_graph(outline)
        for group in header.groups:
            _check_lengths(group, outline.size)
        _check_kind(header, outline)
        if not all(declares(outline, group) for group in header.groups):
            raise ValueError("the inputs or outputs of its graph do not match its shape groups")
    except (ValueError, LookupError) as error:
        raise AxzooError(f"{path} cannot be loaded ({error!s:.200}): build it again") from None
    return header


def declares(outline: Outline, group: ShapeGroup) -> bool:
    """Whether the graph's inputs and outputs match the group's. Symbolic lengths match any length."""
    return _all_match(outline.inputs, group.inputs, group.unused) and _all_match(outline.outputs, group.outputs, ())


def _all_match(declared: tuple[DeclaredTensor, ...], specs: tuple[TensorSpec, ...], unused: tuple[str, ...]) -> bool:
    if [tensor.name for tensor in declared] != [spec.name for spec in specs]:
        return False
    pairs = zip(declared, specs, strict=True)
    return all(spec.name in unused or _matches(tensor, spec) for tensor, spec in pairs)


def _matches(declared: DeclaredTensor, spec: TensorSpec) -> bool:
    if declared.dtype != spec.dtype or len(declared.shape) != len(spec.shape):
        return False
    lengths = zip(declared.shape, spec.shape, strict=True)
    return all(isinstance(length, str) or length == expected for length, expected in lengths)


def _check_graph(outline: Outline) -> None:
    unknown = sorted(set(outline.operators) - OPERATORS)
    if unknown or outline.functions:
        raise ValueError(f"it uses {unknown[0] if unknown else 'functions'!r:.80}, which axzoo never writes")
    for tensor in outline.tensors:
        if tensor.external:
            raise ValueError("it refers to weights in another file, which axzoo never writes")
        if tensor.bytes != _bytes(tensor):
            raise ValueError(
                f"tensor {tensor.name!r:.80} has {tensor.bytes} bytes, but its shape requires {_bytes(tensor)}"
            )


def _bytes(tensor: Initializer) -> int:
    count = math.prod(tensor.shape)
    return -(-count // 2) if tensor.dtype == "int4" else count * NUMPY_DTYPES[tensor.dtype].itemsize


def _check_lengths(group: ShapeGroup, file_size: int) -> None:
    tensors = (*group.inputs, *group.outputs)
    if any(length < 1 for tensor in tensors for length in tensor.shape):
        raise ValueError("a shape group has an empty tensor")
    total = sum(math.prod(tensor.shape) * NUMPY_DTYPES[tensor.dtype].itemsize for tensor in tensors)
    if total > BASE_TENSOR_BYTES + 30 * file_size:
        raise ValueError(f"a shape group has tensors of {total} bytes, too many for a file of {file_size} bytes")


def _check_kind(header: Header, outline: Outline) -> None:
    if header.kind == "decoder_layer":
        _check_layer(header.groups, _rows(outline))
    elif header.kind == "post":
        _check_post(header.groups)
    elif header.kind in ("vision", "encoder", "resampler"):
        _check_vision(header)
    else:
        raise ValueError(f"its kind is {header.kind!r:.80}, not decoder_layer, post, vision, encoder or resampler")


def _check_layer(groups: tuple[ShapeGroup, ...], rows: int | None) -> None:
    """The groups must be decode, then prefill after 0, 1, 2, ... chunks, within the `rows` positions of the rotary
    tables, if there are any."""
    cache, state = groups[0].inputs[0], groups[0].inputs[3]
    if state.dtype not in _STATES or len(cache.shape) != 3 or len(state.shape) != 3:
        raise ValueError("its shape groups are not those of a decoder layer")
    _, cached, kv_size = cache.shape
    chunk = groups[1].inputs[2].shape[-1] if len(groups) > 1 else 1
    sizes = [(1, cached), *((chunk, chunk * index) for index in range(len(groups) - 1))]
    for group, (tokens, past) in zip(groups, sizes, strict=True):
        if group != layer_group(state.dtype, state.shape[2], kv_size, tokens, past):
            raise ValueError("its shape groups are not those of a decoder layer")
    longest = max(cached, chunk * (len(groups) - 1))
    if rows is not None and longest > rows:
        raise ValueError(f"its shape groups need {longest} positions, but its graph has {rows}")


def _rows(outline: Outline) -> int | None:
    """The number of positions in the graph's rotary tables, None if the graph does not rotate."""
    if "RotaryEmbedding" not in outline.operators:
        return None
    shapes = [tensor.shape for tensor in outline.tensors if tensor.name == POSITIONS]
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise ValueError("its graph has no rotary tables")
    return shapes[0][0]


def _check_vision(header: Header) -> None:
    """The groups must be those of images: pixels or rows of patches in, rows out."""
    pixels = header.kind != "resampler"
    ids = [] if header.kind == "encoder" else ["pos_embed_ids"]
    for group in header.groups:
        first, last = group.inputs[0], group.outputs[0]
        if (
            [tensor.name for tensor in group.inputs] != ["input", *ids]
            or [tensor.name for tensor in group.outputs] != ["output"]
            or first.dtype not in (("uint8",) if pixels else _STATES)
            or len(first.shape) != (4 if pixels else 3)
            or first.shape[0] != 1
            or (pixels and first.shape[3] != 3)
            or any((tensor.dtype, len(tensor.shape)) != ("int32", 1) for tensor in group.inputs[1:])
            or last.dtype not in _STATES
            or len(last.shape) != 3
            or group.unused
        ):
            raise ValueError(f"its shape groups are not those of a vision model's {header.kind}")


def _check_post(groups: tuple[ShapeGroup, ...]) -> None:
    names = [tensor.name for tensor in groups[0].outputs]
    has_topk = names[:2] == ["indices", "prob"]
    if (
        len(groups) != 1
        or [tensor.name for tensor in groups[0].inputs] != ["input"]
        or groups[0].inputs[0].dtype not in _STATES
        or any(len(tensor.shape) != 3 or tensor.shape[:2] != (1, 1) for tensor in groups[0].inputs + groups[0].outputs)
        or names[2 if has_topk else 1 :] not in ([], ["postnorm"])
        or not (has_topk or names[:1] == ["output"])
        or groups[0].unused
    ):
        raise ValueError("its shape group is not that of a post layer")
