"""Divides the graph of an .axmodel at its products with weights: graphs without weights, and products between them.

A layer has five stages: up to the products for q, k and v; attention; up to gate and up; the activation; the rest. The
weights are views of the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from axzoo.backends.host.protobuf import Message
from axzoo.core.dtypes import ONNX_DTYPES
from axzoo.runtime.exact.messages import Graph, value

_GRAPH = 7  # ModelProto
_NODES, _INITIALIZERS, _INPUTS, _OUTPUTS = 1, 5, 11, 12  # GraphProto
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA = 1, 2, 8, 9  # TensorProto
_NODE_INPUTS, _NODE_OUTPUTS, _OP_TYPE, _ATTRIBUTES = 1, 2, 4, 5  # NodeProto
_VALUE_NAME = 1  # ValueInfoProto

_SIZES = {"int4": 4, "int8": 8, "fp8_e4m3": 8, "fp8_e5m2": 8, "fp16": 16, "bf16": 16, "fp32": 32}
BITS = {ONNX_DTYPES[name]: bits for name, bits in _SIZES.items()}
"""Bits per weight, by ONNX type."""


@dataclass(frozen=True)
class Matrix:
    """A weight matrix [in_features, out_features] as stored in a file.

    `dtype` is the number of its ONNX type, `values` are its bytes. `scales` [groups, out_features] fp32 each apply to
    in_features / groups consecutive rows; None if the matrix has none.
    """

    dtype: int
    shape: tuple[int, int]
    values: NDArray[np.uint8]
    scales: NDArray[np.float32] | None


@dataclass(frozen=True)
class Product:
    """The product of the value `input` [1, n, in_features] with a matrix."""

    input: str
    output: str
    matrix: Matrix


@dataclass(frozen=True)
class Stage:
    """A serialized ONNX model without weights, and the products that are computed after it.

    The model is empty if there is nothing to compute before the products.
    """

    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    products: tuple[Product, ...]


@dataclass(frozen=True)
class _Node:
    content: memoryview
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def divide(content: memoryview, also: Collection[str] = ()) -> list[Stage]:
    """The stages of a serialized model, in the order in which they run. The values `also` are among their outputs.

    Raises ValueError or LookupError when the graph is not one that axzoo writes, or has no value of that name.
    """
    (graph,) = Message(content).messages(_GRAPH)
    constants = {Message(view).text(_TENSOR_NAME): view for view in graph.views(_INITIALIZERS)}
    nodes = [_node(view) for view in graph.views(_NODES)]
    matrices = _matrices(nodes, constants)
    nodes = [node for node in nodes if node.outputs[0] not in matrices]
    products = {
        node.outputs[0]: Product(node.inputs[0], node.outputs[0], matrices[node.inputs[1]])
        for node in nodes
        if node.op_type == "MatMul" and node.inputs[1] in matrices
    }
    stage_of = _assign_stages(nodes, products)
    others = [node for node in nodes if node.outputs[0] not in products]
    declared = {Message(view).text(_VALUE_NAME): view for view in (*graph.views(_INPUTS), *graph.views(_OUTPUTS))}
    results = {Message(view).text(_VALUE_NAME) for view in graph.views(_OUTPUTS)} | set(also)
    if unknown := set(also) - {name for node in others for name in node.outputs}:
        raise LookupError(f"no value {sorted(unknown)[0]!r:.80}")

    def stage(number: int) -> Stage:
        inside = [node for node in others if stage_of[node.outputs[0]] == number]
        made = _unique(name for node in inside for name in node.outputs)
        read = _unique(name for node in inside for name in node.inputs if name)
        after = [product for product in products.values() if stage_of[product.output] == number + 1]
        outside = [node for node in others if stage_of[node.outputs[0]] != number]
        wanted = {*results, *(product.input for product in after), *(n for node in outside for n in node.inputs)}
        inputs = [name for name in read if name not in made and name not in constants]
        outputs = [name for name in made if name in wanted]
        model = Graph(
            nodes=[node.content for node in inside],
            initializers=[constants[name] for name in read if name in constants],
            inputs=[declared.get(name) or value(name) for name in inputs],
            outputs=[declared.get(name) or value(name) for name in outputs],
        ).model()
        return Stage(model if inside else b"", tuple(inputs), tuple(outputs), tuple(after))

    return [stage(number) for number in range(max(stage_of.values(), default=0) + 1)]


def last_uses(stages: Sequence[Stage]) -> list[list[str]]:
    """For each stage, the values that no later stage reads."""
    last: dict[str, int] = {}
    for number, stage in enumerate(stages):
        read = (*stage.inputs, *(product.input for product in stage.products))
        made = (*stage.outputs, *(product.output for product in stage.products))
        last.update(dict.fromkeys((*made, *read), number))
    dropped: list[list[str]] = [[] for _ in stages]
    for name, number in last.items():
        dropped[number].append(name)
    return dropped


def _assign_stages(nodes: Sequence[_Node], products: Mapping[str, Product]) -> dict[str, int]:
    """The number of the stage that computes each value; a product counts to the stage that follows it.

    Values are computed in the latest stage that their use allows, so that only fp32 values pass from one
    stage to another: masks and positions have other types.
    """
    stage_of: dict[str, int] = {}
    for node in nodes:  # in topological order, as ONNX requires
        product = products.get(node.outputs[0])
        stage = max([stage_of.get(name, 0) for name in node.inputs], default=0)
        if product is not None:
            stage = stage_of.get(product.input, 0) + 1
        stage_of.update(dict.fromkeys(node.outputs, stage))
    uses: dict[str, list[int]] = {}
    for node in reversed(nodes):
        stage = stage_of[node.outputs[0]]
        if node.outputs[0] in products:
            uses.setdefault(node.inputs[0], []).append(stage - 1)
            continue
        stage = min([use for name in node.outputs for use in uses.get(name, [])], default=stage)
        stage_of.update(dict.fromkeys(node.outputs, stage))
        for name in node.inputs:
            uses.setdefault(name, []).append(stage)
    return stage_of


def _node(view: memoryview) -> _Node:
    message = Message(view)
    texts = (tuple(message.texts(number)) for number in (_NODE_INPUTS, _NODE_OUTPUTS))
    return _Node(view, message.text(_OP_TYPE), *texts)


def _matrices(nodes: Sequence[_Node], constants: Mapping[str, memoryview]) -> dict[str, Matrix]:
    """The matrices of products by the name of the value that holds them in fp32."""
    multiplied = {node.inputs[1] for node in nodes if node.op_type == "MatMul"}
    found = {name: _matrix(constants[name], None) for name in multiplied if name in constants}
    for node in nodes:
        if node.outputs[0] in multiplied and node.op_type in ("DequantizeLinear", "Cast"):
            values, *scales = (constants[name] for name in node.inputs)
            matrix = _matrix(values, scales[0] if scales else None)
            _check_layout(node, matrix, [Message(view).integers(_DIMS) for view in scales])
            found[node.outputs[0]] = matrix
    return found


def _matrix(view: memoryview, scales: memoryview | None) -> Matrix:
    """The matrix of a TensorProto. Its bytes are checked, because products read them without bounds."""
    tensor = Message(view)
    dtype, values = tensor.integer(_DATA_TYPE), np.frombuffer(tensor.views(_RAW_DATA)[-1], np.uint8)
    rows, columns = tensor.integers(_DIMS)
    if dtype not in BITS or values.size != -(-rows * columns * BITS[dtype] // 8) or not values.size:
        raise ValueError(f"matrix {tensor.text(_TENSOR_NAME)!r:.80} does not have the bytes of its shape")
    if scales is None:
        return Matrix(dtype, (rows, columns), values, None)
    stored = np.frombuffer(Message(scales).views(_RAW_DATA)[-1], np.float32).reshape(-1, columns)
    if not len(stored) or rows % len(stored):
        raise ValueError(f"{len(stored)} scales per column do not divide {rows} rows")
    return Matrix(dtype, (rows, columns), values, stored)


def _check_layout(node: _Node, matrix: Matrix, scale_dims: Sequence[Sequence[int]]) -> None:
    """Raises ValueError unless the node means what Matrix means: one scale per column, or per block of rows in it."""
    given = {attribute.text(1): attribute.integer(3) for attribute in Message(node.content).messages(_ATTRIBUTES)}
    if node.op_type == "Cast":
        wanted = {"to": ONNX_DTYPES["fp32"]}
    elif [len(dims) for dims in scale_dims] == [1]:
        wanted = {"axis": 1}
    elif [len(dims) for dims in scale_dims] == [2] and matrix.scales is not None:
        wanted = {"axis": 0, "block_size": matrix.shape[0] // len(matrix.scales)}
    else:
        raise ValueError(f"{node.op_type} has scales that axzoo never writes")
    if given != wanted:
        raise ValueError(f"{node.op_type} has attributes {given!s:.80}, not {wanted}")


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
