"""Decoder inputs other than weights: embedding rows, attention masks, KV caches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from axzoo.core.errors import AxzooError

_MASKED = -65536.0
"""The value the board uses (bf16 0xC780)."""
_MASKED_FP16 = -65504.0
"""The lowest finite fp16 value. With -inf, softmax over a fully masked row would give NaN."""


def full_mask(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return a mask that masks every position."""
    return np.full(shape, _MASKED_FP16 if dtype == np.float16 else _MASKED, dtype)


def prefill_mask(count: int, used: int, chunk_len: int, cache_len: int, dtype: DTypeLike) -> NDArray[Any]:
    """Return the mask [1, P, cache_len + P] for a chunk of `count` tokens that follows `used` cached tokens.

    Row i attends to the used cache slots and to tokens 0..i of the chunk. Padding rows `count`..P-1 are fully masked.
    """
    mask = full_mask((1, chunk_len, cache_len + chunk_len), dtype)
    mask[0, :count, :used] = 0
    for row in range(count):
        mask[0, row, cache_len : cache_len + row + 1] = 0
    return mask


class KVCache:
    """Keys and values of each layer, as two arrays [1, S, D]. Row p holds the token at position p."""

    def __init__(self, num_layers: int, length: int, width: int, dtype: DTypeLike) -> None:
        self._keys = [np.zeros((1, length, width), dtype) for _ in range(num_layers)]
        self._values = [np.zeros((1, length, width), dtype) for _ in range(num_layers)]

    def first(self, layer: int, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return contiguous views of the first `count` keys and values, each [1, count, D]."""
        return self._keys[layer][:, :count], self._values[layer][:, :count]

    def write(self, layer: int, position: int, keys: NDArray[Any], values: NDArray[Any]) -> None:
        """Store the rows [1, n, D] of n tokens, the first one at `position`."""
        end = position + keys.shape[1]
        self._keys[layer][:, position:end] = keys
        self._values[layer][:, position:end] = values


_BYTES_PER_VALUE = 2


class Embedding:
    """The embedding table, bf16 [vocab_size, hidden_size].

    With `mmap`, the file is memory-mapped and only the requested rows are read from disk; otherwise it is read whole.
    Raises AxzooError when the file is missing or its size does not match the table.
    """

    def __init__(self, path: Path, vocab_size: int, hidden_size: int, mmap: bool = True) -> None:
        if not path.is_file():
            raise AxzooError(f"{path} is missing: build the bundle again")
        expected, found = vocab_size * hidden_size * _BYTES_PER_VALUE, path.stat().st_size
        if expected != found or expected <= 0:
            raise AxzooError(
                f"{path} has {found} bytes, but {vocab_size} rows of {hidden_size} bf16 values take {expected}: "
                f"build the bundle again"
            )
        shape = (vocab_size, hidden_size)
        self._table: NDArray[Any] = (
            np.memmap(path, np.uint16, "r", shape=shape) if mmap else np.fromfile(path, np.uint16).reshape(shape)
        )

    @property
    def vocab_size(self) -> int:
        return len(self._table)

    def rows(self, ids: Sequence[int]) -> NDArray[Any]:
        """Return a copy of the rows, bf16 [len(ids), hidden_size]. Raises AxzooError when an id is out of range."""
        index = np.asarray(ids, dtype=np.int64)
        if index.size and not (index.min() >= 0 and index.max() < len(self._table)):
            outside = next(i for i in ids if not 0 <= i < len(self._table))
            raise AxzooError(f"token id {outside} is out of range: the embedding has ids 0 to {len(self._table) - 1}")
        return self._table[index].view(ml_dtypes.bfloat16)
