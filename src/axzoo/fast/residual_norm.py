"""The sum of a branch and its residual, and the norm that follows, as one operator."""

from __future__ import annotations

import onnx
from onnx import helper

from axzoo.fast.pattern import Values, attributes, replace_nodes


def join_residual_norms(graph: onnx.GraphProto) -> None:
    """Add + RMSNormalization over the last axis of hidden states -> SkipSimplifiedLayerNormalization, which gives both
    the norm and the sum."""
    values = Values(graph)
    norms: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if node.op_type == "RMSNormalization" and values.is_made_by(node.input[0], "Add"):
            add = values.made_by(node.input[0], "Add")
            if all(map(values.is_computed, add.input)):
                norms.setdefault(add.output[0], node)
    gone = {node.output[0] for node in norms.values()}
    nodes = []
    for node in graph.node:
        if node.output[0] in norms:
            nodes.append(_joined(node, norms[node.output[0]]))
        elif node.output[0] not in gone:
            nodes.append(node)
    replace_nodes(graph, nodes)


def _joined(add: onnx.NodeProto, norm: onnx.NodeProto) -> onnx.NodeProto:
    return helper.make_node(
        "SkipSimplifiedLayerNormalization",
        [*add.input, norm.input[1]],
        [norm.output[0], "", "", add.output[0]],
        name=norm.name,
        domain="com.microsoft",
        epsilon=attributes(norm)["epsilon"],
    )
