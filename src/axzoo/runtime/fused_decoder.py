"""All decoder layers as one session: fast mode's stand-in for the decoder that calls layer after layer.

The files are joined when they are loaded. A call takes just the rows of the cache that are in use, as many tokens as
there are, and writes their keys and values into the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.axmodel import Header
from axzoo.dtypes import NUMPY_DTYPES, ONNX_DTYPES
from axzoo.engine import NodeArg, node_arg, run_bound, shared_options
from axzoo.errors import AxzooError
from axzoo.fast.joined import Joined
from axzoo.runtime.decoder import HiddenHook, one_geometry, require_room
from axzoo.runtime.kv_cache import KVCache
from axzoo.runtime.masks import prefill_mask

_CHUNK = 128
"""Tokens a call takes where the files have no prefill group; more would only take more memory."""


@dataclass(frozen=True)
class _Described:
    """A layer file's shape groups, without a session."""

    header: Header

    @property
    def num_shape_groups(self) -> int:
        return len(self.header.groups)

    def get_inputs(self, shape_group: int = 0) -> list[NodeArg]:
        return [node_arg(tensor) for tensor in self.header.groups[shape_group].inputs]


class FusedDecoder:
    """What Decoder is, but for the hidden states between the layers, which do not leave the session.

    `on_step` is called after each layer. Raises AxzooError when a file is missing or damaged, or the layers do not
    belong together.
    """

    def __init__(self, paths: Sequence[Path], on_step: Callable[[], None]) -> None:
        joined = Joined()
        described = []
        for index, path in enumerate(paths):
            names = {"indices": "indices", "mask": "mask", "input": _hidden(index), "output": _hidden(index + 1)}
            described.append(_Described(joined.add(path, path, f"{index}/", names)))
            on_step()
        self.geometry = one_geometry(described)
        self._state = described[0].header.groups[0].inputs[0].dtype
        self._dtype = NUMPY_DTYPES[self._state]
        self._cache = KVCache(len(paths), self.geometry.kv_cache_num, self.geometry.kv_cache_size, self._dtype)
        self._layers = len(paths)
        self._session = joined.session(shared_options())
        self.used = 0

    def rewind(self, length: int) -> None:
        """Forgets all but the first `length` tokens of the context."""
        self.used = length

    def prefill(self, rows: NDArray[Any], on_hidden: HiddenHook | None = None) -> NDArray[Any]:
        """Appends tokens, given as embedding rows [n, H], to the context; returns the last one's output [1, 1, H].

        Raises AxzooError when there are none, or more than the context holds, and where `on_hidden` is given.
        """
        require_room(self.geometry, self.used, len(rows))
        if on_hidden:
            raise AxzooError("fast mode does not show the layers' hidden states: load the model in exact mode")
        chunk = self.geometry.prefill_token_num or _CHUNK
        for start in range(0, len(rows), chunk):
            hidden = self._run(rows[start : start + chunk])
        return hidden[:, -1:]

    def decode(self, row: NDArray[Any], on_hidden: HiddenHook | None = None) -> NDArray[Any]:
        """Appends one token, given as its embedding row [1, H]; returns its output [1, 1, H]. Raises as `prefill`."""
        return self.prefill(row, on_hidden)

    def _run(self, rows: NDArray[Any]) -> NDArray[Any]:
        """One call: rows [n, H] -> their output [1, n, H]."""
        count, used = len(rows), self.used
        hidden = np.ascontiguousarray(rows, self._dtype)[None]
        feed = {
            _hidden(0): (hidden, self._state),
            "indices": (np.arange(used, used + count, dtype=np.uint32)[None], "uint32"),
            "mask": (prefill_mask(count, used, count, used, self._dtype), self._state),
        }
        result = np.empty_like(hidden)
        filled = {_hidden(self._layers): (result, self._state)}
        for index in range(self._layers):
            for name, past in zip("KV", self._cache.first(index, used + count), strict=True):
                feed[f"{index}/{name}_cache"] = past[:, :used], self._state
                filled[f"{index}/{name}_cache_out"] = past[:, used:], self._state
        binding = self._session.io_binding()
        for bind, arrays in ((binding.bind_input, feed), (binding.bind_output, filled)):
            for name, (array, dtype) in arrays.items():
                bind(name, "cpu", 0, ONNX_DTYPES[dtype], array.shape, array.ctypes.data)
        run_bound(self._session, binding, "the model's layers, joined,")
        self.used += count
        return result


def _hidden(layer: int) -> str:
    """The hidden state that layer takes, or the last one gives."""
    return f"hidden/{layer}"
