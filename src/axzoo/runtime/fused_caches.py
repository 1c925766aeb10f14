"""The caches of a session of all layers, and what a call is given of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from axzoo.dtypes import NUMPY_DTYPES, ONNX_DTYPES
from axzoo.fast.in_place_attention import LAST, TOTAL
from axzoo.runtime.decoder import Geometry
from axzoo.runtime.kv_cache import KVCache
from axzoo.runtime.masks import prefill_mask


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
