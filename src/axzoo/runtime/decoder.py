"""The stack of decoder layers and its caches: prefill by groups, then one token at a time.

Shapes, groups and masks: the layer's protocol of the board's host (group 0 decodes, groups 1..N prefill a chunk behind
0, P, 2P, ... cached tokens). Everything is derived from the tensors' shapes, as that host does.
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
from axzoo.runtime.buffers import KVCache, closed_mask, prefill_mask
from axzoo.runtime.geometry import Grouped, Tensor, one_geometry, require_room

logger = logging.getLogger(__name__)


_OUTPUTS = ["K_cache_out", "V_cache_out", "output"]
_DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}

HiddenHook = Callable[[int, int, NDArray[Any]], None]
"""Is shown each layer's output: (layer, position of its first token, hidden state [n, H]), padding rows left out."""


class Session(Grouped, Protocol):
    """What a layer file must answer: pyaxengine's interface, on a board or on the desk."""

    def get_outputs(self, shape_group: int = 0) -> Sequence[Tensor]: ...
    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, NDArray[Any]],
        run_options: object = None,
        shape_group: int = 0,
    ) -> list[NDArray[Any]]: ...


@dataclass(frozen=True)
class _Call:
    """What all layers are given alike: the shape group, how much of the caches it takes, positions and mask."""

    shape_group: int
    cache_len: int
    indices: NDArray[Any]
    mask: NDArray[Any]


class Decoder:
    """All layers with their caches. `used` tokens of context are in the caches.

    Raises AxzooError when the layers do not belong together.
    """

    def __init__(self, layers: Sequence[Session]) -> None:
        self.geometry = one_geometry(layers)
        self._layers = layers
        self._dtype = np.dtype(_DTYPES[self.geometry.dtype])
        self._cache = KVCache(len(layers), self.geometry.kv_cache_num, self.geometry.kv_cache_size, self._dtype)
        dummy = np.zeros((1, 1, self.geometry.hidden_size), self._dtype)
        self._dummies = dummy, dummy
        self._position = np.zeros((1, 1), np.uint32)
        self.rewind(0)

    def rewind(self, length: int) -> None:
        """Forgets all but the first `length` tokens of the context.

        Also what puts the context in order after an exception (Ctrl-C among them) ended `prefill` or `decode` midway.
        """
        self._mask = closed_mask((1, 1, self.geometry.max_token_len + 1), self._dtype)
        self._mask[..., -1] = 0  # the current token's own slot
        self.used = length

    def prefill(self, rows: NDArray[Any], on_hidden: HiddenHook | None = None) -> NDArray[Any]:
        """Appends tokens, given as embedding rows [n, H], to the context; returns the last one's output [1, 1, H].

        Tokens beyond the prefill groups' reach are decoded one by one. Raises AxzooError when there are none, or more
        than the context holds.
        """
        require_room(self.geometry, self.used, len(rows))
        done = 0
        while done < len(rows) and self._in_reach():
            chunk = rows[done : done + self.geometry.prefill_token_num]
            hidden = self._prefill_chunk(chunk, on_hidden)
            done += len(chunk)
        if done < len(rows) and self.geometry.prefill_groups:
            logger.info(f"the prompt's last {len(rows) - done} tokens lie behind the prefill groups: read one by one")
        for row in range(done, len(rows)):
            hidden = self.decode(rows[row : row + 1], on_hidden)
        return hidden

    def _in_reach(self) -> bool:
        """Whether a prefill group has a cache as long as the context so far."""
        groups = self.geometry.prefill_groups
        return groups > 0 and self.used <= (groups - 1) * self.geometry.prefill_token_num

    def decode(self, row: NDArray[Any], on_hidden: HiddenHook | None = None) -> NDArray[Any]:
        """Appends one token, given as its embedding row [1, H], to the context; returns its output [1, 1, H].

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
        """One run of the smallest prefill group whose cache holds the context so far; short chunks are padded."""
        count, chunk_len = len(rows), self.geometry.prefill_token_num
        cached_chunks = -(-self.used // chunk_len)
        cache_len = cached_chunks * chunk_len
        positions = np.arange(self.used, self.used + chunk_len, dtype=np.uint32)[None]
        mask = prefill_mask(count, self.used, chunk_len, cache_len, self._dtype)
        hidden = np.zeros((1, chunk_len, self.geometry.hidden_size), self._dtype)
        hidden[0, :count] = rows
        return self._run(_Call(1 + cached_chunks, cache_len, positions, mask), hidden, count, on_hidden)

    def _run(self, call: _Call, hidden: NDArray[Any], count: int, on_hidden: HiddenHook | None) -> NDArray[Any]:
        """Sends `count` tokens, a padded hidden state [1, n, H], through all layers and appends them to the context."""
        for index, layer in enumerate(self._layers):
            keys, values = self._cache.first(index, call.cache_len) if call.cache_len else self._dummies
            feed = {"K_cache": keys, "V_cache": values, "indices": call.indices, "input": hidden, "mask": call.mask}
            new_keys, new_values, hidden = layer.run(_OUTPUTS, feed, shape_group=call.shape_group)
            self._cache.write(index, self.used, new_keys[:, :count], new_values[:, :count])
            if on_hidden:
                on_hidden(index, self.used, hidden[0, :count])
        self.used += count
        return hidden[:, count - 1 : count]
