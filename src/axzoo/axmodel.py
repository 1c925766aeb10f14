"""The .axmodel container: an ONNX model whose metadata lists the shape groups the board's engine offers.

One graph with symbolic lengths serves every group. Group 0 is decode, groups 1..N are the prefill chunks; tensor names,
dtypes and shapes are those of the vendor's files. In group 1 the two caches are dummies [1, 1, hidden_size] whose
content nobody reads: `unused` names them, and the graph is run with caches of length 0.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo import __version__
from axzoo.dtypes import ONNX_DTYPES
from axzoo.errors import AxzooError
from axzoo.files import canonical_json
from axzoo.graph.wire import Pieces, field, size
from axzoo.recipe import Recipe
from axzoo.spec import LayerSpec, PostSpec

if TYPE_CHECKING:
    import onnx  # imported where a file is written: the engine and the runtime only read

OPSET = 23
IR_VERSION = 11
METADATA_KEY = "axzoo"
FORMAT = 1
POSITIONS = "rope.cos"
"""The initializer that has a row for each position a layer's graph knows."""
SIZE_LIMIT = (1 << 31) - 1
"""Bytes: protobuf reads no larger message."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of one shape group."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ShapeGroup:
    """The exact tensors one call takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    unused: tuple[str, ...] = ()


def layer_groups(spec: LayerSpec, recipe: Recipe) -> tuple[ShapeGroup, ...]:
    """Decode, then the prefill groups of a decoder layer."""
    lengths = [(1, recipe.kv_cache_len)]
    if recipe.prefill_len:
        lengths += [(recipe.prefill_len, past) for past in (0, *recipe.last_kv_cache_len)]
    sizes = recipe.hidden_state_type, spec.hidden_size, spec.kv_size
    return tuple(layer_group(*sizes, tokens, past) for tokens, past in lengths)


def layer_group(state: str, hidden_size: int, width: int, tokens: int, past: int) -> ShapeGroup:
    """The group that takes `tokens` tokens behind `past` cached ones; `state` is the dtype of the hidden state and of
    the cache, whose rows have `width` values."""
    cache = (1, past, width) if past else (1, 1, hidden_size)
    return ShapeGroup(
        inputs=(
            TensorSpec("K_cache", state, cache),
            TensorSpec("V_cache", state, cache),
            TensorSpec("indices", "uint32", (1, tokens)),
            TensorSpec("input", state, (1, tokens, hidden_size)),
            TensorSpec("mask", state, (1, tokens, past + tokens)),
        ),
        outputs=(
            TensorSpec("K_cache_out", state, (1, tokens, width)),
            TensorSpec("V_cache_out", state, (1, tokens, width)),
            TensorSpec("output", state, (1, tokens, hidden_size)),
        ),
        unused=() if past else ("K_cache", "V_cache"),
    )


def post_groups(spec: PostSpec, recipe: Recipe) -> tuple[ShapeGroup, ...]:
    """The post layer takes one token's hidden state and gives its logits, or its `post_topk` likeliest tokens."""
    state, k = recipe.hidden_state_type, recipe.post_topk
    outputs = [TensorSpec("output", state, (1, 1, spec.vocab_size))]
    if k:
        outputs = [TensorSpec("indices", "int32", (1, 1, k)), TensorSpec("prob", "fp32", (1, 1, k))]
    if recipe.ret_postnorm:
        outputs.append(TensorSpec("postnorm", state, (1, 1, spec.hidden_size)))
    return (ShapeGroup(inputs=(TensorSpec("input", state, (1, 1, spec.hidden_size)),), outputs=tuple(outputs)),)


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
