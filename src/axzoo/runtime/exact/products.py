"""Products with stored matrices. A few rows are dequantized at a time, into memory that stays in the CPU cache.

The result does not depend on the number of threads, because each product is divided in the same way on every machine.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from axzoo.core.dtypes import ONNX_DTYPES
from axzoo.runtime.exact.messages import Graph, node, value
from axzoo.runtime.exact.stages import BITS, Matrix
from axzoo.runtime.threads import session_options, threads

_TILE = 1 << 20
"""Weights dequantized at a time. Half and twice as many were measured to take as long; with four times as many, the
result leaves the CPU cache."""

_MIN_WORK = 1 << 22
"""Multiplications that make it worthwhile to give a part of a product to another thread."""
_PARTS = 16
"""The number of parts of a product, unless its size requires more."""

_FP32, _INT4 = ONNX_DTYPES["fp32"], ONNX_DTYPES["int4"]


def multiply(x: NDArray[np.float32], matrix: Matrix) -> NDArray[np.float32]:
    """x [n, in_features] times a matrix -> [n, out_features]. Raises ValueError when the numbers of features differ."""
    if x.shape[1] != matrix.shape[0]:
        raise ValueError(f"a matrix with {matrix.shape[0]} rows cannot multiply {x.shape[1]} features")
    step = _rows_per_tile(len(x), matrix)
    starts = range(0, matrix.shape[0], step)
    at_once = threads()
    total: NDArray[np.float32] | None = None
    for first in range(0, len(starts), at_once):
        mine, *others = starts[first : first + at_once]
        futures = [_pool().submit(_multiply_rows, x, matrix, start, start + step) for start in others]
        results = [_multiply_rows(x, matrix, mine, mine + step), *(future.result() for future in futures)]
        for result in results:
            total = result if total is None else np.add(total, result, out=total)
    assert total is not None, "a matrix has at least one row"
    return total


def _rows_per_tile(tokens: int, matrix: Matrix) -> int:
    """The number of rows of each tile: whole groups, and whole bytes of int4. A tile has many more rows than x, because
    every tile's result [n, out_features] is added up."""
    rows, columns = matrix.shape
    unit = rows // len(matrix.scales) if matrix.scales is not None and len(matrix.scales) > 1 else 1
    unit *= 1 + (matrix.dtype == _INT4 and unit * columns % 2)
    weights = rows * columns
    parts = max(-(-weights // _TILE), min(_PARTS, tokens * weights // _MIN_WORK), 1)
    smallest = 2 * tokens if tokens > 1 else 1
    return -(-max(-(-rows // parts), smallest) // unit) * unit


def _multiply_rows(x: NDArray[np.float32], matrix: Matrix, start: int, stop: int) -> NDArray[np.float32]:
    """The product of x[:, start:stop] and those rows of the matrix."""
    rows, columns = matrix.shape
    stop = min(stop, rows)
    bits = BITS[matrix.dtype]
    values = _aligned(matrix.values[start * columns * bits // 8 : -(-stop * columns * bits // 8)], bits // 8)
    left = np.ascontiguousarray(x[:, start:stop])
    result = np.empty((len(x), columns), np.float32)
    group = 0
    scales = None
    if matrix.scales is not None:
        groups = len(matrix.scales)
        group = stop - start if groups == 1 else rows // groups
        scales = matrix.scales if groups == 1 else matrix.scales[start // group : stop // group]
        scales = np.require(scales, requirements=("A", "C"))
    session = _session(matrix.dtype, group)
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, _FP32, left.shape, left.ctypes.data)
    binding.bind_input("values", "cpu", 0, matrix.dtype, (stop - start, columns), values.ctypes.data)
    if scales is not None:
        binding.bind_input("scales", "cpu", 0, _FP32, scales.shape, scales.ctypes.data)
    binding.bind_output("y", "cpu", 0, _FP32, result.shape, result.ctypes.data)
    session.run_with_iobinding(binding)
    return result


def _aligned(values: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The bytes at an address that is a multiple of `size`, copied only if necessary: protobuf does not align them."""
    return values.copy() if size > 1 and values.ctypes.data % size else values


@functools.lru_cache(maxsize=64)
def _session(dtype: int, group: int) -> ort.InferenceSession:
    """A session that dequantizes `values` and multiplies x with them. `group` is the number of rows that share a scale,
    0 if there are no scales."""
    nodes = []
    if group:
        nodes.append(node("DequantizeLinear", ["values", "scales"], "weights", {"axis": 0, "block_size": group}))
    elif dtype != _FP32:
        nodes.append(node("Cast", ["values"], "weights", {"to": _FP32}))
    nodes.append(node("MatMul", ["x", "weights" if nodes else "values"], "y"))
    inputs = [value("x"), value("values", dtype), *([value("scales")] if group else [])]
    model = Graph(nodes, [], inputs, [value("y")]).model()
    return ort.InferenceSession(model, exact_options(), providers=["CPUExecutionProvider"])


def exact_options() -> ort.SessionOptions:
    """Options for a session of exact mode. It runs on the thread that calls it."""
    options = session_options(1)
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # fused operators round activations to int8
    if _share_memory():
        options.add_session_config_entry("session.use_env_allocators", "1")
    return options


@functools.cache
def _share_memory() -> bool:
    """Make the memory that all sessions of exact mode use for values. Otherwise each stage would keep its own, which is
    several times the size of all values of a vision model."""
    kind = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    try:
        ort.create_and_register_allocator(kind, None)
    except Exception:  # ONNX Runtime's exceptions share no base class
        return False
    return True


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """The threads beside the one that calls `multiply`."""
    return ThreadPoolExecutor(max(threads() - 1, 1))
