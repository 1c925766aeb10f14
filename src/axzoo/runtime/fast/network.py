"""Runs all layers and the post layer in one session. This is fast mode's counterpart of LayerwiseNetwork.

The files are fused at load time. A call takes any number of tokens and writes their keys and values into the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from axzoo.backends.host.container import Header
from axzoo.core.dtypes import NUMPY_DTYPES, ONNX_DTYPES
from axzoo.core.errors import AxzooError
from axzoo.core.machine import release_freed_memory
from axzoo.runtime.buffers import KVCache, prefill_mask
from axzoo.runtime.decoder import HiddenHook
from axzoo.runtime.engine import NodeArg, node_arg, run_bound, shared_options
from axzoo.runtime.fast.fused_graph import FusedGraph
from axzoo.runtime.fast.in_place_attention import LAST_POSITION, TOTAL_LENGTH
from axzoo.runtime.fast.kernels import EIGHT_BIT, SIXTEEN_BIT, Kernel, has_exact_int8_matmul
from axzoo.runtime.geometry import Geometry, common_geometry, require_matching_hidden_state, require_room
from axzoo.runtime.model import Outputs


@dataclass(frozen=True)
class _LayerHeader:
    """The shape groups of a layer file, without a session."""

    header: Header

    @property
    def num_shape_groups(self) -> int:
        return len(self.header.groups)

    def get_inputs(self, shape_group: int = 0) -> list[NodeArg]:
        return [node_arg(tensor) for tensor in self.header.groups[shape_group].inputs]


class FusedModel:
    """The fused files of a model, not loaded yet. `kernel` computes the matrix products that it supports.

    `on_step` is called after each layer. Raises AxzooError when a file is missing or damaged, or the layers do not
    match each other.
    """

    def __init__(self, paths: Sequence[Path], post: Path, kernel: Kernel, on_step: Callable[[], None]) -> None:
        self._graph = FusedGraph(kernel)
        layers = []
        for index, path in enumerate(paths):
            names = {
                "indices": "indices",
                "mask": "mask",
                "input": _hidden_state(index),
                "output": _hidden_state(index + 1),
            }
            layers.append(_LayerHeader(self._graph.add(path, path, f"{index}/", names)))
            on_step()
        self.geometry = common_geometry(layers)
        self.hidden_state_type = layers[0].header.groups[0].inputs[0].dtype
        self._graph.keep_last_token(_hidden_state(len(paths)), "hidden/last")
        post_group = self._graph.add(post, post, "post/", {"input": "hidden/last"}).groups[0]
        require_matching_hidden_state(post, [node_arg(tensor) for tensor in post_group.inputs], self.geometry)
        self.outputs = post_group.outputs
        self.has_in_place_caches = self._graph.use_in_place_attention(self.geometry.kv_cache_num)

    def supports(self, kernel: Kernel) -> bool:
        """Whether `kernel` supports every matrix product of the model."""
        return self._graph.supports(kernel)

    def load(self) -> ort.InferenceSession:
        """Load the fused graph. Raises AxzooError when ONNX Runtime rejects it."""
        return self._graph.load(shared_options())


def _hidden_state(index: int) -> str:
    """Return the name of the hidden state that layer `index` takes."""
    return f"hidden/{index}"


class Caches(Protocol):
    """The KV caches of a session."""

    def binding(self, used: int, count: int) -> ort.IOBinding:
        """Bind every input and output except hidden states, for a call of `count` tokens after `used` cached ones."""


class InPlaceCaches:
    """Caches that attention updates in place, fp32 [1, kv_heads, length, head_dim]. All calls use the same binding.

    Positions are bound too if the attention operator does not apply the rotary embedding itself.
    """

    def __init__(self, session: ort.InferenceSession, memory: Mapping[str, NDArray[np.float32]]) -> None:
        self._last = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)
        self._binding = session.io_binding()
        bind_input(self._binding, LAST_POSITION, self._last, "int32")
        bind_input(self._binding, TOTAL_LENGTH, self._total, "int32")
        self._takes_indices = any(tensor.name == "indices" for tensor in session.get_inputs())
        self._memory = memory  # a binding does not keep its arrays alive
        for name, cache in memory.items():
            bind_input(self._binding, name, cache, "fp32")
            bind_output(self._binding, f"{name}_out", cache, "fp32")

    def binding(self, used: int, count: int) -> ort.IOBinding:
        self._last[0] = used + count - 1
        self._total[()] = used + count
        if self._takes_indices:
            self._indices = np.arange(used, used + count, dtype=np.uint32)[None]  # kept alive as well
            bind_input(self._binding, "indices", self._indices, "uint32")
        return self._binding


class CopiedCaches:
    """Caches as a layer file has them: attention takes the used rows, a mask and positions, and returns new rows."""

    def __init__(self, session: ort.InferenceSession, cache: KVCache, layers: int, dtype: str) -> None:
        self._session = session
        self._takes_indices = any(tensor.name == "indices" for tensor in session.get_inputs())
        self._cache = cache
        self._layers = layers
        self._dtype = dtype
        self._bound: tuple[NDArray[Any], ...] = ()

    def binding(self, used: int, count: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        indices = np.arange(used, used + count, dtype=np.uint32)[None]
        mask = prefill_mask(count, used, count, used, NUMPY_DTYPES[self._dtype])
        self._bound = indices, mask  # a binding does not keep its arrays alive
        if self._takes_indices:
            bind_input(binding, "indices", indices, "uint32")
        bind_input(binding, "mask", mask, self._dtype)
        for index in range(self._layers):
            for name, rows in zip("KV", self._cache.first(index, used + count), strict=True):
                bind_input(binding, f"{index}/{name}_cache", rows[:, :used], self._dtype)
                bind_output(binding, f"{index}/{name}_cache_out", rows[:, used:], self._dtype)
        return binding


def make_caches(
    sessions: Sequence[ort.InferenceSession], in_place: bool, layers: int, geometry: Geometry, dtype: str
) -> list[Caches]:
    """Allocate empty caches that all sessions of a model share. `in_place` says that attention updates them."""
    if in_place:
        caches = [tensor for tensor in sessions[0].get_inputs() if tensor.name.endswith("_cache")]
        memory = {tensor.name: np.zeros(tensor.shape, np.float32) for tensor in caches}
        return [InPlaceCaches(session, memory) for session in sessions]
    cache = KVCache(layers, geometry.kv_cache_num, geometry.kv_cache_size, NUMPY_DTYPES[dtype])
    return [CopiedCaches(session, cache, layers, dtype) for session in sessions]


def bind_input(binding: ort.IOBinding, name: str, array: NDArray[Any], dtype: str) -> None:
    """Bind an input to the memory of an array."""
    binding.bind_input(name, "cpu", 0, ONNX_DTYPES[dtype], array.shape, array.ctypes.data)


def bind_output(binding: ort.IOBinding, name: str, array: NDArray[Any], dtype: str) -> None:
    """Bind an output to the memory of an array."""
    binding.bind_output(name, "cpu", 0, ONNX_DTYPES[dtype], array.shape, array.ctypes.data)


_MIN_PROMPT_TOKENS = 8
"""Calls of this many tokens or more run in the prefill session.

There, 8 tokens take as long as in the decode session, 16 tokens two thirds of the time, and 128 tokens half.
"""

_NO_HIDDEN_STATES = "fast mode does not expose hidden states: load the model in exact mode"


class FusedNetwork:
    """Runs all layers and the post layer in one session. Hidden states between layers cannot be observed.

    With `separate_prefill`, a second copy of the weights is loaded into a prefill session that reads prompts with
    16-bit activations. It is skipped if the SIXTEEN_BIT kernel does not support all weights, or is not exact on this
    processor.

    `on_step` is called after each layer and the post layer. Raises AxzooError when a file is missing or damaged, or the
    layers do not match each other.
    """

    def __init__(self, paths: Sequence[Path], post: Path, on_step: Callable[[], None], separate_prefill: bool) -> None:
        model = FusedModel(paths, post, EIGHT_BIT, on_step)
        self.geometry = model.geometry
        self._hidden_state_type = model.hidden_state_type
        self._outputs = model.outputs
        self.has_topk = any(tensor.name == "indices" for tensor in self._outputs)
        in_place = model.has_in_place_caches
        if separate_prefill:
            separate_prefill = model.supports(SIXTEEN_BIT) and has_exact_int8_matmul(shared_options())
        self._sessions = [model.load()]
        del model  # the session has its own copy of the weights: free these before the second session is loaded
        if separate_prefill:
            self._sessions.append(FusedModel(paths, post, SIXTEEN_BIT, lambda: None).load())
        release_freed_memory()
        on_step()
        self._caches = make_caches(self._sessions, in_place, len(paths), self.geometry, self._hidden_state_type)
        self.used = 0

    def rewind(self, length: int) -> None:
        """Drop all but the first `length` tokens of the context."""
        self.used = length

    def prefill(self, rows: NDArray[Any], on_hidden: HiddenHook | None = None) -> Outputs:
        """Append tokens, given as embedding rows [n, H], to the context.

        Raises AxzooError when there are no tokens, more than the context has room for, or `on_hidden` is given.
        """
        require_room(self.geometry, self.used, len(rows))
        if on_hidden:
            raise AxzooError(_NO_HIDDEN_STATES)
        chunk = self.geometry.chunk_len
        for start in range(0, len(rows), chunk):
            outputs = self._run(rows[start : start + chunk])
        return outputs

    def decode(self, row: NDArray[Any], on_hidden: HiddenHook | None = None) -> Outputs:
        """Append one token, given as its embedding row [1, H]. Raises as `prefill` does."""
        return self.prefill(row, on_hidden)

    def post(self, hidden: NDArray[Any]) -> Outputs:
        """Always raises AxzooError: the post layer cannot be run by itself."""
        raise AxzooError(_NO_HIDDEN_STATES)

    def _run(self, rows: NDArray[Any]) -> Outputs:
        """Run one call on rows [n, H] and return the post layer outputs for the last one."""
        which = -1 if len(rows) >= _MIN_PROMPT_TOKENS else 0  # the prefill session is the last one, if there are two
        hidden = np.ascontiguousarray(rows, NUMPY_DTYPES[self._hidden_state_type])[None]
        outputs = {tensor.name: np.empty(tensor.shape, NUMPY_DTYPES[tensor.dtype]) for tensor in self._outputs}
        binding = self._caches[which].binding(self.used, len(rows))
        bind_input(binding, _hidden_state(0), hidden, self._hidden_state_type)
        for tensor in self._outputs:
            bind_output(binding, f"post/{tensor.name}", outputs[tensor.name], tensor.dtype)
        run_bound(self._sessions[which], binding, "the fused model")
        self.used += len(rows)
        return outputs
