"""The token embedding: raw little-endian bf16, row id at id * hidden_size * 2 bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from axzoo.errors import AxzooError

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
