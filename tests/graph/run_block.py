"""Runs a part of a graph by itself, in onnx's own evaluator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401 - teaches numpy the name bfloat16
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from axzoo.graph.builder import GraphBuilder

Arrays = dict[str, NDArray[Any]]


def run_block(make: Callable[[GraphBuilder], list[str]], rank: int = 3, **inputs: NDArray[Any]) -> Arrays:
    """What a block makes of its inputs: the fp32 values of `rank` axes `make` returns the names of.

    The graph passes onnx's checker.
    """
    g = GraphBuilder()
    names = make(g)
    graph = g.graph(
        "block",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in names],
    )
    model = onnx.ModelProto(ir_version=11, opset_import=[helper.make_opsetid("", 23)], graph=graph)
    onnx.checker.check_model(model, full_check=True)
    found = ReferenceEvaluator(model).run(None, inputs)
    return {name: np.asarray(array) for name, array in zip(names, found, strict=True)}
