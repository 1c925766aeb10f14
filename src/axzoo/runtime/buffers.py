"""Decoder inputs other than weights: embedding rows, attention masks, KV caches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from axzoo.core.errors import AxzooError
from axzoo.core.files import has_file, open_regular

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
    Rows are multiplied by `scale` and rounded to bf16.

    Raises AxzooError when the file is missing or its size does not match the table.
    """

    def __init__(self, path: Path, vocab_size: int, hidden_size: int, mmap: bool = True, scale: float = 1.0) -> None:
        if not has_file(path):
            raise AxzooError(f"{path} is missing: build the bundle again")
        expected, found = vocab_size * hidden_size * _BYTES_PER_VALUE, path.stat().st_size
        if expected != found or expected <= 0:
            raise AxzooError(
                f"{path} has {found} bytes, but {vocab_size} rows of {hidden_size} bf16 values take {expected}: "
                f"build the bundle again"
            )
        shape = (vocab_size, hidden_size)
        self._scale = scale
        with open_regular(path) as file:
            self._table: NDArray[Any] = (
                np.memmap(file, np.uint16, "r", shape=shape) if mmap else np.fromfile(file, np.uint16).reshape(shape)
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
        rows: NDArray[Any] = self._table[index].view(ml_dtypes.bfloat16)
        return rows if self._scale == 1 else (rows.astype(np.float32) * self._scale).astype(ml_dtypes.bfloat16)


class ExtraRows:
    """Rows besides those of the embedding, such as the rows of images, with ids from `vocab_size` upwards.

    The ids allow prompts with images to be compared and cached like text. The most recent blocks are kept, as many as a
    prompt of `max_rows` tokens can have, and those that the context uses.
    """

    def __init__(self, embedding: Embedding, max_rows: int) -> None:
        self._embedding = embedding
        self._max_rows = max_rows
        self._blocks: dict[bytes, tuple[int, NDArray[Any]]] = {}
        self._next = embedding.vocab_size

    def add(self, rows: NDArray[Any], in_use: Sequence[int]) -> list[int]:
        """Return the ids of `rows` [n, hidden_size]; equal rows that were added before keep theirs."""
        rows = np.ascontiguousarray(rows)
        key = hashlib.sha256(rows.view(np.uint8).data).digest()
        first, _ = block = self._blocks.pop(key, (self._next, rows))
        self._blocks[key] = block
        self._next = max(self._next, first + len(rows))
        self._drop_oldest(set(in_use))
        return list(range(first, first + len(rows)))

    def _drop_oldest(self, in_use: set[int]) -> None:
        newer = 0
        for key, (first, block) in reversed(list(self._blocks.items())):
            if newer >= self._max_rows and first not in in_use:
                del self._blocks[key]
            newer += len(block)

    def rows(self, ids: Sequence[int]) -> NDArray[Any]:
        """Return a copy of the rows, bf16 [len(ids), hidden_size]. Raises AxzooError when an id is unknown."""
        if all(i < self._embedding.vocab_size for i in ids):
            return self._embedding.rows(ids)
        extra = {first + i: row for first, block in self._blocks.values() for i, row in enumerate(block)}
        rows = self._embedding.rows([0 if i in extra else i for i in ids])
        for position, i in enumerate(ids):
            if i in extra:
                rows[position] = extra[i]
        return rows
