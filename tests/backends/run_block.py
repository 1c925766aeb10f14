"""Runs a part of a graph in onnx's reference evaluator or in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401 - registers bfloat16 with numpy
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from axzoo.backends.host.builder import GraphBuilder
from axzoo.runtime.threads import session_options, threads

Arrays = dict[str, NDArray[Any]]


def run_block(make: Callable[[GraphBuilder], list[str]], rank: int = 3, **inputs: NDArray[Any]) -> Arrays:
    """The outputs of a block: the fp32 values with `rank` axes whose names `make` returns.

    The graph passes onnx's checker.
    """
    model = _model(make, rank, inputs)
    onnx.checker.check_model(model, full_check=True)
    names = [output.name for output in model.graph.output]
    found = ReferenceEvaluator(model).run(None, inputs)
    return {name: np.asarray(array) for name, array in zip(names, found, strict=True)}


def run_in_onnxruntime(make: Callable[[GraphBuilder], list[str]], rank: int = 3, **inputs: NDArray[Any]) -> Arrays:
    """The same with ONNX Runtime on the CPU, which dequantizes weights when it loads them."""
    model = _model(make, rank, inputs)
    options = session_options(threads())  # a process has one pool of threads
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in model.graph.output]
    return dict(zip(names, session.run(names, inputs), strict=True))


def _model(make: Callable[[GraphBuilder], list[str]], rank: int, inputs: Arrays) -> onnx.ModelProto:
    g = GraphBuilder()
    names = make(g)
    pieces = g.graph(
        "block",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in names],
    )
    graph = onnx.GraphProto.FromString(b"".join(pieces))
    return onnx.ModelProto(ir_version=11, opset_import=[helper.make_opsetid("", 23)], graph=graph)
