"""The embedding table -> raw little-endian bf16 rows, the board's `.bfloat16.bin`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, BinaryIO

import ml_dtypes
from numpy.typing import NDArray


def write_embedding(blocks: Iterable[NDArray[Any]], file: BinaryIO) -> None:
    """Writes the table [vocab_size, hidden_size], given as blocks of rows, rounding to nearest even."""
    for block in blocks:
        file.write(block.astype(ml_dtypes.bfloat16).tobytes())
