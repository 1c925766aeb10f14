"""What a decoder is given beside the weights: embedding rows, attention masks, KV caches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from axzoo.core.errors import AxzooError

_CLOSED = -65536.0
"""The board's value (bf16 0xC780)."""
_CLOSED_FP16 = -65504.0
"""fp16 ends here, and an infinity would turn fully closed rows into NaN."""


def closed_mask(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """A mask with every slot closed."""
    return np.full(shape, _CLOSED_FP16 if dtype == np.float16 else _CLOSED, dtype)


def prefill_mask(count: int, used: int, chunk_len: int, cache_len: int, dtype: DTypeLike) -> NDArray[Any]:
    """The mask [1, P, cache_len + P] of a chunk of `count` tokens behind `used` cached ones.

    Row i is open at the used cache slots and at the chunk's tokens 0..i. Padding rows, `count`..P-1, stay closed.
    """
    mask = closed_mask((1, chunk_len, cache_len + chunk_len), dtype)
    mask[0, :count, :used] = 0
    for row in range(count):
        mask[0, row, cache_len : cache_len + row + 1] = 0
    return mask


class KVCache:
    """Two arrays [1, S, D] for each layer; row p belongs to the token at position p."""

    def __init__(self, num_layers: int, length: int, width: int, dtype: DTypeLike) -> None:
        self._keys = [np.zeros((1, length, width), dtype) for _ in range(num_layers)]
        self._values = [np.zeros((1, length, width), dtype) for _ in range(num_layers)]

    def first(self, layer: int, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Keys and values [1, count, D] of the first positions: views, contiguous."""
        return self._keys[layer][:, :count], self._values[layer][:, :count]

    def write(self, layer: int, position: int, keys: NDArray[Any], values: NDArray[Any]) -> None:
        """Stores the rows [1, n, D] of the tokens at `position` and after it."""
        end = position + keys.shape[1]
        self._keys[layer][:, position:end] = keys
        self._values[layer][:, position:end] = values


_BYTES = 2


class Embedding:
    """Rows of the table [vocab_size, hidden_size]; of a `mapped` file only those asked for are read from the disk.

    Raises AxzooError when the file is missing or its size is not that of the table.
    """

    def __init__(self, path: Path, vocab_size: int, hidden_size: int, mapped: bool = True) -> None:
        if not path.is_file():
            raise AxzooError(f"{path} is missing: build the bundle again")
        wanted, found = vocab_size * hidden_size * _BYTES, path.stat().st_size
        if wanted != found or wanted <= 0:
            raise AxzooError(
                f"{path} has {found} bytes, but {vocab_size} rows of {hidden_size} bf16 numbers are {wanted}: "
                f"build the bundle again"
            )
        shape = (vocab_size, hidden_size)
        self._table: NDArray[Any] = (
            np.memmap(path, np.uint16, "r", shape=shape) if mapped else np.fromfile(path, np.uint16).reshape(shape)
        )

    @property
    def vocab_size(self) -> int:
        return len(self._table)

    def rows(self, ids: Sequence[int]) -> NDArray[Any]:
        """bf16 [len(ids), hidden_size], a copy. Raises AxzooError for an id outside of the table."""
        index = np.asarray(ids, dtype=np.int64)
        if index.size and not (index.min() >= 0 and index.max() < len(self._table)):
            outside = next(i for i in ids if not 0 <= i < len(self._table))
            raise AxzooError(f"token id {outside} has no row in the embedding, which ends at {len(self._table) - 1}")
        return self._table[index].view(ml_dtypes.bfloat16)
