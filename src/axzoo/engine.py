"""Running .axmodel files on the CPU with the interface of pyaxengine, over ONNX Runtime.

Two modes. `exact` multiplies with the weights dequantized to fp32 when the file is loaded: what the file means, and the
mode of every check. `fast` lets ONNX Runtime fuse integer kernels.
All sessions share one thread pool: private pools were measured 12 to 25 times slower.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from axzoo.axmodel import METADATA_KEY, ShapeGroup, TensorSpec, parse_header
from axzoo.dtypes import NUMPY_DTYPES, ONNX_DTYPES
from axzoo.errors import AxzooError

Mode = Literal["exact", "fast"]


@dataclass(frozen=True)
class NodeArg:
    """An input or output of one shape group."""

    name: str
    shape: list[int]
    dtype: str


class InferenceSession:
    """One loaded .axmodel.

    Raises AxzooError when the file is missing, damaged or not one that axzoo wrote.
    """

    def __init__(self, path: str | Path, mode: Mode = "exact") -> None:
        _share_threads()
        self._path = Path(path)
        options = ort.SessionOptions()
        options.use_per_session_threads = False
        options.log_severity_level = 3
        if mode == "exact":
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if not self._path.is_file():
            raise AxzooError(f"{self._path} is missing: build the bundle again")
        try:
            self._session = ort.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own classes share no base class
            raise AxzooError(f"{self._path} cannot be loaded ({_first_line(error)}): build it again") from None
        metadata = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        self._groups = parse_header(metadata, self._path).groups
        self._declared = {node.name: node.shape for node in self._session.get_inputs()}

    @property
    def num_shape_groups(self) -> int:
        return len(self._groups)

    def get_inputs(self, shape_group: int = 0) -> list[NodeArg]:
        return [_node_arg(tensor) for tensor in self._group(shape_group).inputs]

    def get_outputs(self, shape_group: int = 0) -> list[NodeArg]:
        return [_node_arg(tensor) for tensor in self._group(shape_group).outputs]

    def run(
        self, output_names: Sequence[str] | None, feed: Mapping[str, NDArray[Any]], shape_group: int = 0
    ) -> list[NDArray[Any]]:
        """Runs one call of a shape group; bf16 arrays are `ml_dtypes.bfloat16`.

        Raises ValueError when a name, shape or dtype is not exactly the group's.
        """
        group = self._group(shape_group)
        arrays = self._checked(group, feed, shape_group)
        binding = self._session.io_binding()
        for tensor in group.inputs:
            array = arrays[tensor.name]
            if tensor.name in group.unused:
                array = np.empty((1, 0, self._declared[tensor.name][2]), array.dtype)
            binding.bind_input(tensor.name, "cpu", 0, ONNX_DTYPES[tensor.dtype], array.shape, array.ctypes.data)
        results = {tensor.name: np.empty(tensor.shape, NUMPY_DTYPES[tensor.dtype]) for tensor in group.outputs}
        for tensor in group.outputs:
            array = results[tensor.name]
            binding.bind_output(tensor.name, "cpu", 0, ONNX_DTYPES[tensor.dtype], array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        wanted = list(results) if output_names is None else output_names
        unknown = [name for name in wanted if name not in results]
        if unknown:
            raise ValueError(f"{self._path}: no output named {', '.join(unknown)}; there are {', '.join(results)}")
        return [results[name] for name in wanted]

    def _group(self, index: int) -> ShapeGroup:
        if not 0 <= index < len(self._groups):
            raise ValueError(f"{self._path} has shape groups 0 to {len(self._groups) - 1}, not {index}")
        return self._groups[index]

    def _checked(self, group: ShapeGroup, feed: Mapping[str, NDArray[Any]], index: int) -> dict[str, NDArray[Any]]:
        expected = {tensor.name: tensor for tensor in group.inputs}
        if set(feed) != set(expected):
            raise ValueError(
                f"{self._path}, shape group {index}: takes {', '.join(expected)}; was given {', '.join(feed)}"
            )
        arrays = {}
        for name, tensor in expected.items():
            array = feed[name]
            if array.dtype != NUMPY_DTYPES[tensor.dtype] or array.shape != tensor.shape:
                raise ValueError(
                    f"{self._path}, shape group {index}: {name} must be {NUMPY_DTYPES[tensor.dtype]} "
                    f"{list(tensor.shape)}, was given {array.dtype} {list(array.shape)}"
                )
            arrays[name] = np.ascontiguousarray(array)
        return arrays


def _node_arg(tensor: TensorSpec) -> NodeArg:
    return NodeArg(tensor.name, list(tensor.shape), str(NUMPY_DTYPES[tensor.dtype]))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@functools.cache
def _share_threads() -> None:
    """Makes the process's one thread pool: as wide as Snakemake allots the job, or as the process may use."""
    threads = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
    ort.set_global_thread_pool_sizes(threads, 1)
