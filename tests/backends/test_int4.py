"""Packed int4: golden bytes, and reading with onnx."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from onnx import numpy_helper

from axzoo.backends.host.builder import GraphBuilder, pack_int4


@pytest.mark.parametrize(
    "codes, packed",
    [([[-8, 7], [1, -1]], "78f1"), ([[0, 1, 2], [3, 4, -5]], "1032b4"), ([[5]], "05"), ([[-1, -2, -3]], "ef0d")],
)
def test_golden(codes: list[list[int]], packed: str) -> None:
    assert pack_int4(np.array(codes, np.int8).view(ml_dtypes.int4)).tobytes().hex() == packed


@given(hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.integers(-8, 7)))
def test_onnx_reads_what_the_builder_writes(codes: NDArray[np.int8]) -> None:
    g = GraphBuilder()
    g.constant("c", codes.view(ml_dtypes.int4))
    (tensor,) = onnx.GraphProto.FromString(b"".join(g.graph("g", [], []))).initializer
    assert (tensor.data_type, len(tensor.raw_data)) == (onnx.TensorProto.INT4, (codes.size + 1) // 2)
    assert_array_equal(numpy_helper.to_array(tensor).astype(np.int8), codes)
