"""Runs .axmodel files on the CPU with ONNX Runtime, behind pyaxengine's interface.

`axzoo axengine PROGRAM` runs a host program written for the board, which imports this module as `axengine`.

There are two modes. `exact` dequantizes the weights to fp32 at load time; it is the reference semantics of a file, and
every check uses it. `fast` multiplies integer weights with integer kernels and rounds activations to int8. All sessions
share one thread pool: with private pools, runs were measured to be 12 to 25 times slower.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from axzoo.backends.host.contract import loadable_header
from axzoo.backends.host.outline import map_file
from axzoo.core.dtypes import NUMPY_DTYPES, ONNX_DTYPES
from axzoo.core.errors import AxzooError
from axzoo.parts.groups import ShapeGroup, TensorSpec
from axzoo.runtime.exact.session import ExactSession, Typed
from axzoo.runtime.threads import session_options, threads

FileMode = Literal["exact", "fast"]

axengine_provider_name = "AxEngineExecutionProvider"
axclrt_provider_name = "AXCLRTExecutionProvider"
"""The engine of the board, and that of an accelerator card. Here both run on the CPU."""


def get_all_providers() -> list[str]:
    return [axengine_provider_name, axclrt_provider_name]


def get_available_providers() -> list[str]:
    return get_all_providers()


class SessionOptions:
    """An empty placeholder, as in pyaxengine."""


@dataclass(frozen=True)
class NodeArg:
    """An input or output of one shape group."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


Provider = str | tuple[str, dict[Any, Any]]


class InferenceSession:
    """A loaded .axmodel, given as a path or as bytes.

    `providers` and the options are those of pyaxengine: provider names are checked, options have no effect on the CPU.
    Raises AxzooError when the file is missing, damaged or not written by axzoo. Raises ValueError or TypeError for
    invalid providers.
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes,
        sess_options: SessionOptions | None = None,
        providers: str | Sequence[Provider] | None = None,
        provider_options: Sequence[dict[Any, Any]] | None = None,
        *,
        mode: FileMode = "exact",
    ) -> None:
        self._provider = _choose_provider(providers)
        self._sess_options = sess_options
        self._path = Path("model bytes" if isinstance(path_or_bytes, bytes) else path_or_bytes)
        load = _load_fast if mode == "fast" else _load
        source = path_or_bytes if isinstance(path_or_bytes, bytes) else self._path
        self._session, self._groups = load(source, self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        del self._session

    def get_session_options(self) -> SessionOptions | None:
        return self._sess_options

    def get_providers(self) -> str:
        """Return the name of the selected provider: a single string, as in pyaxengine."""
        return self._provider

    @property
    def num_shape_groups(self) -> int:
        return len(self._groups)

    def get_inputs(self, shape_group: int = 0) -> list[NodeArg]:
        return [node_arg(tensor) for tensor in self._group(shape_group).inputs]

    def get_outputs(self, shape_group: int = 0) -> list[NodeArg]:
        return [node_arg(tensor) for tensor in self._group(shape_group).outputs]

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, NDArray[Any]],
        run_options: object = None,
        shape_group: int = 0,
    ) -> list[NDArray[Any]]:
        """Run a shape group once and return its outputs, in the order of `output_names` if given.

        bf16 arrays are `ml_dtypes.bfloat16`. Contiguous inputs and all outputs are used without a copy. As on the
        board, inputs that the group does not have are ignored; `run_options` has no effect.
        Raises ValueError when an input is missing, an output is unknown, or a shape or dtype differs from the group's.
        """
        group = self._group(shape_group)
        arrays = self._checked(group, input_feed, shape_group)
        names = [tensor.name for tensor in group.outputs] if output_names is None else output_names
        unknown = set(names) - {tensor.name for tensor in group.outputs}
        if unknown:
            known = ", ".join(tensor.name for tensor in group.outputs)
            raise ValueError(f"{self._path}: no output named {', '.join(sorted(unknown))}; the outputs are {known}")
        inputs = {}
        for tensor in group.inputs:
            array = arrays[tensor.name]
            if tensor.name in group.unused:
                array = np.empty((1, 0, self._groups[0].inputs[0].shape[2]), array.dtype)
            inputs[tensor.name] = array, ONNX_DTYPES[tensor.dtype]
        results = {tensor.name: np.empty(tensor.shape, NUMPY_DTYPES[tensor.dtype]) for tensor in group.outputs}
        outputs = {tensor.name: (results[tensor.name], ONNX_DTYPES[tensor.dtype]) for tensor in group.outputs}
        try:
            self._session.run(inputs, outputs)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise AxzooError(f"{self._path} failed to run on the given inputs ({_first_line(error)})") from None
        return [results[name] for name in names]

    def _group(self, index: int) -> ShapeGroup:
        if not 0 <= index < len(self._groups):
            raise ValueError(f"{self._path} has shape groups 0 to {len(self._groups) - 1}, not {index}")
        return self._groups[index]

    def _checked(self, group: ShapeGroup, feed: Mapping[str, NDArray[Any]], index: int) -> dict[str, NDArray[Any]]:
        expected = {tensor.name: tensor for tensor in group.inputs}
        if not set(feed) >= set(expected):
            raise ValueError(
                f"{self._path}, shape group {index}: the inputs are {', '.join(expected)}; got {', '.join(feed)}"
            )
        arrays = {}
        for name, tensor in expected.items():
            array = feed[name]
            if array.dtype != NUMPY_DTYPES[tensor.dtype] or array.shape != tensor.shape:
                raise ValueError(
                    f"{self._path}, shape group {index}: {name} must be {NUMPY_DTYPES[tensor.dtype]} "
                    f"{list(tensor.shape)}, got {array.dtype} {list(array.shape)}"
                )
            arrays[name] = np.ascontiguousarray(array)
        return arrays


def node_arg(tensor: TensorSpec) -> NodeArg:
    """Return the NodeArg that describes a tensor of a shape group."""
    return NodeArg(tensor.name, NUMPY_DTYPES[tensor.dtype], tensor.shape)


def _choose_provider(providers: str | Sequence[Provider] | None) -> str:
    """Return the first requested provider that is available, as pyaxengine does."""
    available = get_available_providers()
    requested = available if providers is None else [providers] if isinstance(providers, str) else providers
    names = [entry[0] if isinstance(entry, tuple) and len(entry) == 2 else entry for entry in requested]
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"a provider must be a name or a (name, options) pair, not {name!r}")
    found = [str(name) for name in names if name in available]
    if not found:
        raise ValueError(f"none of the providers {names} is available; the providers are {', '.join(available)}")
    return found[0]


def shared_options() -> ort.SessionOptions:
    """Return options for a session of fast mode."""
    return session_options(threads())


def run_bound(session: ort.InferenceSession, binding: ort.IOBinding, name: object) -> None:
    """Run a session on bound inputs and outputs. Raises AxzooError, which mentions `name`, when the run fails."""
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise AxzooError(f"{name} failed to run on the given inputs ({_first_line(error)})") from None


class Session(Protocol):
    """A loaded file, without its shape groups."""

    def run(self, inputs: Mapping[str, Typed], results: Mapping[str, Typed]) -> None: ...


Loaded = tuple[Session, tuple[ShapeGroup, ...]]


def _load(source: Path | bytes, path: Path) -> Loaded:
    groups = loadable_header(source, path).groups
    try:
        return ExactSession(memoryview(source if isinstance(source, bytes) else map_file(source))), groups
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise AxzooError(f"{path} cannot be loaded ({_first_line(error)}): build it again") from None


def _load_fast(source: Path | bytes, path: Path) -> Loaded:
    from axzoo.runtime.fast.fused_graph import FusedGraph
    from axzoo.runtime.fast.kernels import EIGHT_BIT  # imports onnx, which exact mode does not need

    graph = FusedGraph(EIGHT_BIT)
    header = graph.add(source, path)
    return _WholeGraph(graph.load(shared_options())), header.groups


class _WholeGraph:
    """A session that runs the graph of a file as a whole."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session

    def run(self, inputs: Mapping[str, Typed], results: Mapping[str, Typed]) -> None:
        binding = self._session.io_binding()
        for name, (array, dtype) in inputs.items():
            binding.bind_input(name, "cpu", 0, dtype, array.shape, array.ctypes.data)
        for name, (array, dtype) in results.items():
            binding.bind_output(name, "cpu", 0, dtype, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)


def _first_line(error: Exception) -> str:
    """Return the start of ONNX Runtime's message, made printable: it may quote names from the file."""
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return "".join(char if char.isprintable() else "?" for char in line[:300])
