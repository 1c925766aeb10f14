"""Replaces attention with an operator that writes new keys and values into the cache it reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx
from onnx import helper

from axzoo.runtime.fast.rewriting import GraphIndex, PatternMismatch, attributes, replace_nodes

LAST_POSITION, TOTAL_LENGTH = "last position", "total length"
"""Inputs of the rewritten graph.

LAST_POSITION, int32 [1], is the position of the last token of the call. TOTAL_LENGTH, an int32 scalar, is the number of
tokens in the context, including those of the call.
"""

_NO_WINDOW = -1


def attend_in_place(graph: onnx.GraphProto, length: int) -> bool:
    """Replace every Attention node with GroupQueryAttention, and return whether that was possible.

    If one differs from the form that layer files have, return False and leave the graph unchanged.

    The caches become fp32 [1, kv_heads, length, head_dim]. Bind each one as input and output with the same memory. The
    rewritten graph has no input `mask`: a token attends to all tokens before it, within the window of the layer. Where
    the operator applies the rotary embedding, it has no input `indices` either: the tokens of a call follow those in
    the cache.
    """
    index = GraphIndex(graph)
    try:
        widths = {value.name: value.type.tensor_type.shape.dim[-1].dim_value for value in graph.input}
        found = {node.output[0]: _match(index, node, widths) for node in graph.node if node.op_type == "Attention"}
    except LookupError:  # PatternMismatch, or an input or initializer is missing
        return False
    _rewrite(graph, found, length)
    return True


@dataclass(frozen=True)
class _Cached:
    """Keys or values: the names of the cache input, the new fp32 rows, and the cache output."""

    cache: str
    new: str
    output: str


@dataclass(frozen=True)
class _Rotation:
    """Rotary embedding of queries and keys, as applied by the operator itself."""

    cos: str
    sin: str
    interleaved: int


@dataclass(frozen=True)
class _Attention:
    """The inputs and attributes of GroupQueryAttention. With `rotation`, `query` and `keys.new` are not rotated yet."""

    name: str
    query: str
    keys: _Cached
    values: _Cached
    output: str
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    rotation: _Rotation | None


def _match(index: GraphIndex, node: onnx.NodeProto, widths: dict[str, int]) -> _Attention:
    """Raise PatternMismatch when the attention differs from that of a layer file, or its heads are not supported."""
    counts = attributes(node)
    if counts.keys() != {"q_num_heads", "kv_num_heads"}:
        raise PatternMismatch(f"{node.name} has unexpected attributes")
    keys, values = (_cached(index, rows) for rows in node.input[1:3])
    head_dim = widths[keys.cache] // counts["kv_num_heads"]
    if head_dim % 8:
        raise PatternMismatch(f"the operator does not support a head_dim of {head_dim}")
    query, rotation = node.input[0], _rotation(index, node.input[0], keys.new, head_dim)
    if rotation:
        query, key = (index.producer(rows, "RotaryEmbedding").input[0] for rows in (query, keys.new))
        keys = replace(keys, new=key)
    return _Attention(
        name=node.name,
        query=query,
        keys=keys,
        values=values,
        output=node.output[0],
        heads=counts["q_num_heads"],
        kv_heads=counts["kv_num_heads"],
        head_dim=head_dim,
        window=_window(index, node.input[3]),
        rotation=rotation,
    )


def _cached(index: GraphIndex, rows: str) -> _Cached:
    """Match the cached rows followed by the new ones, cast to fp32."""
    concat = index.producer(index.producer(rows, "Cast").input[0], "Concat")
    cast = index.producer(concat.input[1], "Cast")
    return _Cached(concat.input[0], cast.input[0], cast.output[0])


def _window(index: GraphIndex, mask: str) -> int:
    """Return how many tokens, itself included, a token attends to. The operator itself masks the tokens after it."""
    window = _NO_WINDOW
    if index.is_output_of(mask, "Add"):
        mask, within = index.producer(mask, "Add").input
        outside = index.producer(index.producer(within, "Where").input[0], "GreaterOrEqual")
        index.producer(outside.input[0], "Sub")
        window = int(index.constant(outside.input[1]))
    index.producer(index.producer(mask, "Unsqueeze").input[0], "Cast")
    return window


def _rotation(index: GraphIndex, query: str, key: str, head_dim: int) -> _Rotation | None:
    """Return the rotary embedding that the operator can apply itself, or None if it takes queries and keys as is."""
    if not (index.is_output_of(query, "RotaryEmbedding") and index.is_output_of(key, "RotaryEmbedding")):
        return None
    first, second = (index.producer(rows, "RotaryEmbedding") for rows in (query, key))
    _, cos, sin, positions = first.input
    is_supported = head_dim % 16 == 0 and index.shape(cos)[-1] % 8 == 0
    if not is_supported or first.input[1:] != second.input[1:] or not index.is_output_of(positions, "Cast"):
        return None
    return _Rotation(cos, sin, attributes(first)["interleaved"])


def _rewrite(graph: onnx.GraphProto, found: dict[str, _Attention], length: int) -> None:
    index = GraphIndex(graph)
    caches = {cached.cache: one for one in found.values() for cached in (one.keys, one.values)}
    outputs = {cached.output: one for one in found.values() for cached in (one.keys, one.values)}
    for field, owners in ((graph.input, caches), (graph.output, outputs)):
        for value in field:
            if value.name in owners:
                owner = owners[value.name]
                shape = [1, owner.kv_heads, length, owner.head_dim]
                value.CopyFrom(helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, shape))
    graph.input.append(helper.make_tensor_value_info(LAST_POSITION, onnx.TensorProto.INT32, [1]))
    graph.input.append(helper.make_tensor_value_info(TOTAL_LENGTH, onnx.TensorProto.INT32, []))
    nodes = [
        _in_place(index, found[node.output[0]]) if node.output[0] in found else node
        for node in graph.node
        if node.output[0] not in outputs
    ]
    replace_nodes(graph, nodes)


def _in_place(index: GraphIndex, attention: _Attention) -> onnx.NodeProto:
    rows = [attention.query, attention.keys.new, attention.values.new]
    rotation = attention.rotation
    tables = [rotation.cos, rotation.sin] if rotation else []
    caches = [attention.keys.cache, attention.values.cache]
    return helper.make_node(
        "GroupQueryAttention",
        [*_packed(index, rows), *caches, LAST_POSITION, TOTAL_LENGTH, *tables],
        [attention.output, attention.keys.output, attention.values.output],
        name=attention.name,
        domain="com.microsoft",
        num_heads=attention.heads,
        kv_num_heads=attention.kv_heads,
        local_window_size=attention.window,
        do_rotary=int(rotation is not None),
        rotary_interleaved=rotation.interleaved if rotation else 0,
    )


def _packed(index: GraphIndex, rows: list[str]) -> list[str]:
    """Return queries, keys and values as one packed input if they come from the same Split."""
    if index.is_output_of(rows[0], "Split"):
        split = index.producer(rows[0], "Split")
        if list(split.output) == rows:
            return [split.input[0], "", ""]
    return rows
