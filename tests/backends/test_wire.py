"""Messages in pieces, compared with protobuf's serialization."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from axzoo.backends.host.builder import GraphBuilder
from axzoo.backends.host.container import field, size
from axzoo.core.dtypes import NUMPY_DTYPES

BORDERS = [0, 1, 127, 128, 129, 16383, 16384, 16385, 2097151, 2097152]
"""Lengths around the points where their encoding needs another byte."""


@pytest.mark.parametrize("length", BORDERS)
def test_field_equals_protobuf_serialization(length: int) -> None:
    content = bytes(length)
    expected = onnx.TensorProto(raw_data=content).SerializeToString()
    split = (content[: length // 2], memoryview(content)[length // 2 :])
    for pieces in ((content,), split):
        found = field(onnx.TensorProto.RAW_DATA_FIELD_NUMBER, pieces)
        assert b"".join(found) == expected
        assert size(found) == len(expected)


@pytest.mark.parametrize("number", [3, 15, 16, 2047, 2048, 536870911])
def test_any_field_number(number: int) -> None:
    """The message type has no such field; protobuf returns it as an unknown field."""
    message = onnx.OperatorSetIdProto.FromString(b"".join(field(number, [b"inside"])))
    (found,) = UnknownFieldSet(message)
    assert (found.field_number, found.wire_type, found.data) == (number, 2, b"inside")


@given(
    st.sampled_from(sorted(NUMPY_DTYPES)),
    st.lists(st.integers(0, 5), max_size=4),
    st.text(min_size=1, max_size=200),
    st.booleans(),
)
def test_initializer_equals_protobuf_serialization(dtype: str, shape: list[int], name: str, transposed: bool) -> None:
    array = np.arange(int(np.prod(shape))).astype(NUMPY_DTYPES[dtype]).reshape(shape)
    array = array.T if transposed else array
    g = GraphBuilder()
    g.op("Neg", ["x"], "first")
    g.constant(name, array)
    g.op("Neg", ["first"], "second")
    g.constant("other", np.ones(3, np.float32))
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])
    data = b"".join(g.graph("g", [value], [value]))
    graph = onnx.GraphProto.FromString(data)
    assert graph.SerializeToString(deterministic=True) == data
    assert [node.name for node in graph.node] == ["first", "second"]
    assert graph.initializer[0].name == name
    assert _equal(numpy_helper.to_array(graph.initializer[0]), array)


def _equal(found: NDArray[np.generic], expected: NDArray[np.generic]) -> bool:
    return (found.shape, found.dtype, found.tobytes()) == (expected.shape, expected.dtype, expected.tobytes())


def test_large_weights_are_not_copied() -> None:
    weight = np.zeros((64, 64), ml_dtypes.bfloat16)
    g = GraphBuilder()
    g.constant("w", weight)
    views = [piece for piece in g.graph("g", [], []) if isinstance(piece, memoryview)]
    assert [np.shares_memory(np.asarray(view), weight) for view in views] == [True]
