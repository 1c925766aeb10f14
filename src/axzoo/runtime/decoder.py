"""The stack of decoder layers and its KV caches: prefill by shape group, then decode one token at a time.

Shape groups and masks follow the board's host program: group 0 decodes one token, and groups 1..N prefill a chunk that
follows 0, P, 2P, ... cached tokens. As in that program, all lengths are derived from the tensor shapes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from axzoo.core.errors import AxzooError
from axzoo.runtime.buffers import KVCache, full_mask, prefill_mask
from axzoo.runtime.geometry import HasShapeGroups, SessionTensor, common_geometry, require_room

logger = logging.getLogger(__name__)


_OUTPUTS = ["K_cache_out", "V_cache_out", "output"]
_DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}

HiddenHook = Callable[[int, int, NDArray[Any]], None]
"""Called with each layer's output: (layer, position of the first token, hidden state [n, H] without padding rows)."""


class LayerSession(HasShapeGroups, Protocol):
    """pyaxengine's session interface, as far as a layer needs it; on a board or on a PC."""

    def get_outputs(self, shape_group: int = 0) -> Sequence[SessionTensor]: ...
    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, NDArray[Any]],
        run_options: object = None,
        shape_group: int = 0,
    ) -> list[NDArray[Any]]: ...


@dataclass(frozen=True)
class _Call:
    """Inputs that all layers share: the shape group, its cache length, positions and mask."""

    shape_group: int
    cache_len: int
    indices: NDArray[Any]
    mask: NDArray[Any]


class Decoder:
    """All decoder layers and their KV caches. `used` is the number of cached tokens.

    Raises AxzooError when the layers differ in shape.
    """

    def __init__(self, layers: Sequence[LayerSession]) -> None:
        self.geometry = common_geometry(layers)
        self._layers = layers
        self._dtype = np.dtype(_DTYPES[self.geometry.dtype])
        self._cache = KVCache(len(layers), self.geometry.kv_cache_num, self.geometry.kv_cache_size, self._dtype)
        dummy = np.zeros((1, 1, self.geometry.hidden_size), self._dtype)
        self._dummies = dummy, dummy
        self._position = np.zeros((1, 1), np.uint32)
        self.rewind(0)

    def rewind(self, length: int) -> None:
        """Drop all but the first `length` tokens of the context.

        Call this to restore a consistent context after an exception (or Ctrl-C) interrupted `prefill` or `decode`.
        """
        self._mask = full_mask((1, 1, self.geometry.max_token_len + 1), self._dtype)
        self._mask[..., -1] = 0  # the current token's own slot
        self.used = length

    def prefill(self, rows: NDArray[Any], on_hidden: HiddenHook | None = None) -> NDArray[Any]:
        """Append tokens, given as embedding rows [n, H], to the context; return the output [1, 1, H] of the last one.

        Tokens beyond the reach of the prefill groups are decoded one at a time. Raises AxzooError when there are no
        tokens, or more than the context has room for.
        """
        require_room(self.geometry, self.used, len(rows))
        done = 0
        while done < len(rows) and self._in_reach():
            chunk = rows[done : done + self.geometry.prefill_token_num]
            hidden = self._prefill_chunk(chunk, on_hidden)
            done += len(chunk)
        if done < len(rows) and self.geometry.prefill_groups:
            logger.info(f"the last {len(rows) - done} prompt tokens are beyond the prefill groups: reading one by one")
        for row in range(done, len(rows)):
            hidden = self.decode(rows[row : row + 1], on_hidden)
        return hidden

    def _in_reach(self) -> bool:
        """Whether the cache of some prefill group holds the context so far."""
        groups = self.geometry.prefill_groups
        return groups > 0 and self.used <= (groups - 1) * self.geometry.prefill_token_num

    def decode(self, row: NDArray[Any], on_hidden: HiddenHook | None = None) -> NDArray[Any]:
        """Append one token, given as its embedding row [1, H], to the context; return its output [1, 1, H].

        Raises AxzooError when the context is full.
        """
        if self.used >= self.geometry.max_token_len:
            raise AxzooError(f"the context is full: it holds {self.geometry.max_token_len} tokens")
        self._position[0, 0] = self.used
        self._mask[..., : self.used] = 0
        hidden = row.astype(self._dtype)[None]
        call = _Call(0, self.geometry.kv_cache_num, self._position, self._mask)
        return self._run(call, hidden, 1, on_hidden)

    def _prefill_chunk(self, rows: NDArray[Any], on_hidden: HiddenHook | None) -> NDArray[Any]:
        """Run the smallest prefill group whose cache holds the context so far. Short chunks are padded."""
        count, chunk_len = len(rows), self.geometry.prefill_token_num
        cached_chunks = -(-self.used // chunk_len)
        cache_len = cached_chunks * chunk_len
        positions = np.arange(self.used, self.used + chunk_len, dtype=np.uint32)[None]
        mask = prefill_mask(count, self.used, chunk_len, cache_len, self._dtype)
        hidden = np.zeros((1, chunk_len, self.geometry.hidden_size), self._dtype)
        hidden[0, :count] = rows
        return self._run(_Call(1 + cached_chunks, cache_len, positions, mask), hidden, count, on_hidden)

    def _run(self, call: _Call, hidden: NDArray[Any], count: int, on_hidden: HiddenHook | None) -> NDArray[Any]:
        """Run `count` tokens, a padded hidden state [1, n, H], through all layers and append them to the context."""
        for index, layer in enumerate(self._layers):
            keys, values = self._cache.first(index, call.cache_len) if call.cache_len else self._dummies
            feed = {"K_cache": keys, "V_cache": values, "indices": call.indices, "input": hidden, "mask": call.mask}
            new_keys, new_values, hidden = layer.run(_OUTPUTS, feed, shape_group=call.shape_group)
            self._cache.write(index, self.used, new_keys[:, :count], new_values[:, :count])
            if on_hidden:
                on_hidden(index, self.used, hidden[0, :count])
        self.used += count
        return hidden[:, count - 1 : count]
