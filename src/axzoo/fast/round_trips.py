"""No rounding to a 16-bit float between two files that compute in fp32."""

from __future__ import annotations

import onnx

from axzoo.fast.pattern import Values, attributes, replace_nodes


def skip_round_trips(graph: onnx.GraphProto) -> None:
    """Where a value is cast to the hidden state's dtype and back to fp32, takes the value itself.

    Files of axzoo's compute in fp32: what is cast to a hidden state was fp32.
    """
    values = Values(graph)
    instead = {}
    for node in graph.node:
        to_fp32 = node.op_type == "Cast" and attributes(node)["to"] == onnx.TensorProto.FLOAT
        if to_fp32 and values.is_made_by(node.input[0], "Cast"):
            instead[node.output[0]] = values.made_by(node.input[0], "Cast").input[0]
    for node in graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]
    replace_nodes(graph, list(graph.node))
