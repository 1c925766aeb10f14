"""All layers as one session: fast mode's stand-in for the network that calls layer after layer.

The files are joined when they are loaded. A call takes as many tokens as there are, and writes their keys and values
into the cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from axzoo.backends.host.container import Header
from axzoo.core import machine as heap
from axzoo.core.dtypes import NUMPY_DTYPES, ONNX_DTYPES
from axzoo.core.errors import AxzooError
from axzoo.runtime.buffers import KVCache, prefill_mask
from axzoo.runtime.decoder import HiddenHook
from axzoo.runtime.engine import NodeArg, node_arg, run_bound, shared_options
from axzoo.runtime.fast.fused_graph import Joined
from axzoo.runtime.fast.in_place_attention import LAST, TOTAL
from axzoo.runtime.fast.kernels import BLOCKS, TWO_BYTES, Kernel, is_exact
from axzoo.runtime.geometry import Geometry, one_geometry, require_room, require_same_state
from axzoo.runtime.model import Outputs


@dataclass(frozen=True)
class _Described:
    """A layer file's shape groups, without a session."""

    header: Header

    @property
    def num_shape_groups(self) -> int:
        return len(self.header.groups)

    def get_inputs(self, shape_group: int = 0) -> list[NodeArg]:
        return [node_arg(tensor) for tensor in self.header.groups[shape_group].inputs]


class FusedFiles:
    """Files that are joined, not loaded yet; `kernel` computes the products it fits.

    `on_step` is called after each layer. Raises AxzooError when a file is missing or damaged, or the layers do not
    belong together.
    """

    def __init__(self, paths: Sequence[Path], post: Path, kernel: Kernel, on_step: Callable[[], None]) -> None:
        self._joined = Joined(kernel)
        described = []
        for index, path in enumerate(paths):
            names = {"indices": "indices", "mask": "mask", "input": hidden(index), "output": hidden(index + 1)}
            described.append(_Described(self._joined.add(path, path, f"{index}/", names)))
            on_step()
        self.geometry = one_geometry(described)
        self.state = described[0].header.groups[0].inputs[0].dtype
        self._joined.take_last(hidden(len(paths)), "hidden/last")
        head = self._joined.add(post, post, "post/", {"input": "hidden/last"}).groups[0]
        require_same_state(post, [node_arg(tensor) for tensor in head.inputs], self.geometry)
        self.outputs = head.outputs
        self.has_shared_caches = self._joined.share_caches(self.geometry.kv_cache_num)

    def suit(self, kernel: Kernel) -> bool:
        """Whether this kernel, too, would compute every product."""
        return self._joined.suits(kernel)

    def load(self) -> ort.InferenceSession:
        """Raises AxzooError when the graph is none that ONNX Runtime runs."""
        return self._joined.session(shared_options())


def hidden(index: int) -> str:
    """The hidden state that layer takes, or the last one gives."""
    return f"hidden/{index}"


class Caches(Protocol):
    """Keys and values of the context."""

    def binding(self, used: int, count: int) -> ort.IOBinding:
        """A call of `count` tokens behind `used` ones, with all it takes and gives but the hidden states."""


class SharedCaches:
    """For attention in place in fp32 [1, kv_heads, length, head_dim], by input: one binding serves every call.

    Positions are given as well where the attention does not rotate by itself.
    """

    def __init__(self, session: ort.InferenceSession, memory: Mapping[str, NDArray[np.float32]]) -> None:
        self._last = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)
        self._binding = session.io_binding()
        bind_input(self._binding, LAST, self._last, "int32")
        bind_input(self._binding, TOTAL, self._total, "int32")
        self._takes_indices = any(tensor.name == "indices" for tensor in session.get_inputs())
        self._memory = memory  # held: a binding holds no memory
        for name, cache in memory.items():
            bind_input(self._binding, name, cache, "fp32")
            bind_output(self._binding, f"{name}_out", cache, "fp32")

    def binding(self, used: int, count: int) -> ort.IOBinding:
        self._last[0] = used + count - 1
        self._total[()] = used + count
        if self._takes_indices:
            self._indices = np.arange(used, used + count, dtype=np.uint32)[None]  # held as well
            bind_input(self._binding, "indices", self._indices, "uint32")
        return self._binding


class CopiedCaches:
    """The files' own: attention is given the rows in use, a mask and positions, and gives new rows."""

    def __init__(self, session: ort.InferenceSession, cache: KVCache, layers: int, state: str) -> None:
        self._session = session
        self._cache = cache
        self._layers = layers
        self._state = state
        self._held: tuple[NDArray[Any], ...] = ()

    def binding(self, used: int, count: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        indices = np.arange(used, used + count, dtype=np.uint32)[None]
        mask = prefill_mask(count, used, count, used, NUMPY_DTYPES[self._state])
        self._held = indices, mask  # a binding holds no memory
        bind_input(binding, "indices", indices, "uint32")
        bind_input(binding, "mask", mask, self._state)
        for index in range(self._layers):
            for name, rows in zip("KV", self._cache.first(index, used + count), strict=True):
                bind_input(binding, f"{index}/{name}_cache", rows[:, :used], self._state)
                bind_output(binding, f"{index}/{name}_cache_out", rows[:, used:], self._state)
        return binding


def one_context(
    sessions: Sequence[ort.InferenceSession], shared: bool, layers: int, geometry: Geometry, state: str
) -> list[Caches]:
    """The same empty caches, for each of the sessions of one model's files; `shared` where attention is in place."""
    if shared:
        caches = [tensor for tensor in sessions[0].get_inputs() if tensor.name.endswith("_cache")]
        memory = {tensor.name: np.zeros(tensor.shape, np.float32) for tensor in caches}
        return [SharedCaches(session, memory) for session in sessions]
    cache = KVCache(layers, geometry.kv_cache_num, geometry.kv_cache_size, NUMPY_DTYPES[state])
    return [CopiedCaches(session, cache, layers, state) for session in sessions]


def bind_input(binding: ort.IOBinding, name: str, array: NDArray[Any], dtype: str) -> None:
    """Lets a call read an input from the array's memory."""
    binding.bind_input(name, "cpu", 0, ONNX_DTYPES[dtype], array.shape, array.ctypes.data)


def bind_output(binding: ort.IOBinding, name: str, array: NDArray[Any], dtype: str) -> None:
    """Lets a call write an output into the array's memory."""
    binding.bind_output(name, "cpu", 0, ONNX_DTYPES[dtype], array.shape, array.ctypes.data)


_PROMPT = 8
"""Tokens from which on the prompts' session reads: 8 take as long there as in the other, 16 two thirds, 128 half."""

_TWICE = 2.25
"""Bytes in memory for a byte of int8 weights in a file: 1.25 with the scales of blocks, and 1 for prompts.

A byte of int4 becomes 3.5, so what is refused by this would not fit.
"""

_NOT_SHOWN = "fast mode does not show the layers' hidden states: load the model in exact mode"


class FusedNetwork:
    """What Layered is, but for the hidden states, which do not leave the session.

    With `prompts_apart` the weights are kept a second time, for a session of TWO_BYTES that prompts are read with. It
    is left out where some weights are none that this kernel fits, or the processor computes it inexactly.

    `on_step` is called after each layer and the post layer. Raises AxzooError when a file is missing or damaged, the
    layers do not belong together, or this machine could never hold the weights twice.
    """

    def __init__(self, paths: Sequence[Path], post: Path, on_step: Callable[[], None], prompts_apart: bool) -> None:
        files = FusedFiles(paths, post, BLOCKS, on_step)
        self.geometry = files.geometry
        self._state = files.state
        self._dtype = NUMPY_DTYPES[files.state]
        self._outputs = files.outputs
        self.gives_topk = any(tensor.name == "indices" for tensor in self._outputs)
        shares = files.has_shared_caches
        apart = prompts_apart and files.suit(TWO_BYTES) and is_exact(shared_options())
        if apart:
            _require_memory((*paths, post))
        self._sessions = [files.load()]
        del files  # with the weights, of which the session has its own: memory never holds what both are made of
        if apart:
            self._sessions.append(FusedFiles(paths, post, TWO_BYTES, lambda: None).load())
        heap.release_freed_memory()
        on_step()
        self._caches = one_context(self._sessions, shares, len(paths), self.geometry, self._state)
        self.used = 0

    def rewind(self, length: int) -> None:
        """Forgets all but the first `length` tokens of the context."""
        self.used = length

    def prefill(self, rows: NDArray[Any], on_hidden: HiddenHook | None = None) -> Outputs:
        """Appends tokens, given as embedding rows [n, H], to the context.

        Raises AxzooError when there are none, or more than the context holds, and where `on_hidden` is given.
        """
        require_room(self.geometry, self.used, len(rows))
        if on_hidden:
            raise AxzooError(_NOT_SHOWN)
        chunk = self.geometry.chunk_len
        for start in range(0, len(rows), chunk):
            outputs = self._run(rows[start : start + chunk])
        return outputs

    def decode(self, row: NDArray[Any], on_hidden: HiddenHook | None = None) -> Outputs:
        """Appends one token, given as its embedding row [1, H]. Raises as `prefill`."""
        return self.prefill(row, on_hidden)

    def post(self, hidden: NDArray[Any]) -> Outputs:
        raise AxzooError(_NOT_SHOWN)

    def _run(self, rows: NDArray[Any]) -> Outputs:
        """One call: rows [n, H] -> what the post layer gives of the last one."""
        which = -1 if len(rows) >= _PROMPT else 0  # the last session is the prompts', where they have one
        state = np.ascontiguousarray(rows, self._dtype)[None]
        outputs = {tensor.name: np.empty(tensor.shape, NUMPY_DTYPES[tensor.dtype]) for tensor in self._outputs}
        binding = self._caches[which].binding(self.used, len(rows))
        bind_input(binding, hidden(0), state, self._state)
        for tensor in self._outputs:
            bind_output(binding, f"post/{tensor.name}", outputs[tensor.name], tensor.dtype)
        run_bound(self._sessions[which], binding, "the model's files, joined,")
        self.used += len(rows)
        return outputs


def _require_memory(files: Sequence[Path]) -> None:
    """Raises AxzooError when the weights of the files, twice, are more than the machine has."""
    needed = int(_TWICE * sum(path.stat().st_size for path in files))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise AxzooError(
            f"weights kept a second time for prompts take {needed >> 20} MB with the first, and this machine has "
            f"{memory >> 20} MB: use --mode fast"
        )
