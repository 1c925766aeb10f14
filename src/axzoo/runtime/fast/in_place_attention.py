"""Attention that writes new keys and values into the cache it reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx
from onnx import helper

from axzoo.runtime.fast.rewriting import Unmatched, Values, attributes, replace_nodes

LAST, TOTAL = "last position", "total length"
"""Inputs of the changed graph: the position of the call's last token, int32 [1], and the tokens of context with the
call's own, an int32."""

_NO_WINDOW = -1


def attend_in_place(graph: onnx.GraphProto, length: int) -> bool:
    """Makes all attention over caches GroupQueryAttention; changes nothing, and says so, where some is of another form.

    Instead of the rows in use, and giving the new ones, the caches are then fp32 [1, kv_heads, length, head_dim], each
    to be bound as input and output with the same memory. The mask is not given any more, for a token sees all before it
    within the layer's window, nor are `indices` where the attention rotates: the call's tokens follow those in the
    cache.
    """
    values = Values(graph)
    try:
        widths = {value.name: value.type.tensor_type.shape.dim[-1].dim_value for value in graph.input}
        found = {node.output[0]: _match(values, node, widths) for node in graph.node if node.op_type == "Attention"}
    except LookupError:  # Unmatched, or an input or constant that a layer file's attention has
        return False
    _change(graph, found, length)
    return True


@dataclass(frozen=True)
class _Cached:
    """Keys or values: the cache's input and output, and the new rows, fp32."""

    cache: str
    new: str
    output: str


@dataclass(frozen=True)
class _Rotation:
    """How queries and keys are rotated in the operator itself."""

    cos: str
    sin: str
    interleaved: int


@dataclass(frozen=True)
class _Attention:
    """What GroupQueryAttention needs to know; `query`, `keys.new` and `values.new` are not rotated yet where there is a
    `rotation`."""

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


def _match(values: Values, node: onnx.NodeProto, widths: dict[str, int]) -> _Attention:
    """Raises Unmatched when the attention is not that of a layer file, or the operator does not serve its heads."""
    counts = attributes(node)
    if counts.keys() != {"q_num_heads", "kv_num_heads"}:
        raise Unmatched(f"{node.name} has attributes of its own")
    keys, new_values = (_cached(values, rows) for rows in node.input[1:3])
    head_dim = widths[keys.cache] // counts["kv_num_heads"]
    if head_dim % 8:
        raise Unmatched(f"heads of {head_dim} are none that the operator takes")
    query, rotation = node.input[0], _rotation(values, node.input[0], keys.new, head_dim)
    if rotation:
        query, key = (values.made_by(rows, "RotaryEmbedding").input[0] for rows in (query, keys.new))
        keys = replace(keys, new=key)
    return _Attention(
        name=node.name,
        query=query,
        keys=keys,
        values=new_values,
        output=node.output[0],
        heads=counts["q_num_heads"],
        kv_heads=counts["kv_num_heads"],
        head_dim=head_dim,
        window=_window(values, node.input[3]),
        rotation=rotation,
    )


def _cached(values: Values, rows: str) -> _Cached:
    """fp32 of a cache's rows with the new ones behind them."""
    concat = values.made_by(values.made_by(rows, "Cast").input[0], "Concat")
    rounded = values.made_by(concat.input[1], "Cast")
    return _Cached(concat.input[0], rounded.input[0], rounded.output[0])


def _window(values: Values, mask: str) -> int:
    """How many tokens, itself the last, a token sees; that it sees none after it is what the operator is for."""
    window = _NO_WINDOW
    if values.is_made_by(mask, "Add"):
        mask, within = values.made_by(mask, "Add").input
        outside = values.made_by(values.made_by(within, "Where").input[0], "GreaterOrEqual")
        values.made_by(outside.input[0], "Sub")
        window = int(values.constant(outside.input[1]))
    values.made_by(values.made_by(mask, "Unsqueeze").input[0], "Cast")
    return window


def _rotation(values: Values, query: str, key: str, head_dim: int) -> _Rotation | None:
    """None where the operator is given queries and keys as they are, rotated or not."""
    if not (values.is_made_by(query, "RotaryEmbedding") and values.is_made_by(key, "RotaryEmbedding")):
        return None
    first, second = (values.made_by(rows, "RotaryEmbedding") for rows in (query, key))
    _, cos, sin, positions = first.input
    served = head_dim % 16 == 0 and values.shape(cos)[-1] % 8 == 0
    if not served or first.input[1:] != second.input[1:] or not values.is_made_by(positions, "Cast"):
        return None
    return _Rotation(cos, sin, attributes(first)["interleaved"])


def _change(graph: onnx.GraphProto, found: dict[str, _Attention], length: int) -> None:
    values = Values(graph)
    caches = {cached.cache: one for one in found.values() for cached in (one.keys, one.values)}
    outputs = {cached.output: one for one in found.values() for cached in (one.keys, one.values)}
    for field, owners in ((graph.input, caches), (graph.output, outputs)):
        for value in field:
            if value.name in owners:
                owner = owners[value.name]
                shape = [1, owner.kv_heads, length, owner.head_dim]
                value.CopyFrom(helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, shape))
    graph.input.append(helper.make_tensor_value_info(LAST, onnx.TensorProto.INT32, [1]))
    graph.input.append(helper.make_tensor_value_info(TOTAL, onnx.TensorProto.INT32, []))
    nodes = [
        _in_place(values, found[node.output[0]]) if node.output[0] in found else node
        for node in graph.node
        if node.output[0] not in outputs
    ]
    replace_nodes(graph, nodes)


def _in_place(values: Values, attention: _Attention) -> onnx.NodeProto:
    rows = [attention.query, attention.keys.new, attention.values.new]
    rotation = attention.rotation
    tables = [rotation.cos, rotation.sin] if rotation else []
    caches = [attention.keys.cache, attention.values.cache]
    return helper.make_node(
        "GroupQueryAttention",
        [*_packed(values, rows), *caches, LAST, TOTAL, *tables],
        [attention.output, attention.keys.output, attention.values.output],
        name=attention.name,
        domain="com.microsoft",
        num_heads=attention.heads,
        kv_num_heads=attention.kv_heads,
        local_window_size=attention.window,
        do_rotary=int(rotation is not None),
        rotary_interleaved=rotation.interleaved if rotation else 0,
    )


def _packed(values: Values, rows: list[str]) -> list[str]:
    """Queries, keys and values as one value, where they are the parts of one."""
    if values.is_made_by(rows[0], "Split"):
        split = values.made_by(rows[0], "Split")
        if list(split.output) == rows:
            return [split.input[0], "", ""]
    return rows
