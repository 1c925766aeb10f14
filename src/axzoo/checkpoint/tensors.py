"""The interface of checkpoints of any format."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from axzoo.core.errors import AxzooError

Array = NDArray[Any]

BLOCK_BYTES = 4 << 20
"""Tensors larger than this are read in blocks of rows, to bound memory."""

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""The supported weight dtypes, by their safetensors names."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as declared by its file."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]


def repeated(path: Path, first: TensorInfo) -> AxzooError:
    """The error if a file has other values for a tensor of another file. Equal copies are accepted."""
    return AxzooError(
        f"{path} repeats tensor {first.name}, which is also in {first.file}, with other values: remove the wrong file, "
        f"or save the model again"
    )


def numpy_dtype(info: TensorInfo) -> np.dtype[Any]:
    """The numpy dtype of a tensor. Raises AxzooError for an unsupported one."""
    if info.dtype not in DTYPES:
        raise AxzooError(
            f"{info.file}: tensor {info.name} has dtype {info.dtype}, but must have one of {', '.join(DTYPES)}"
        )
    return DTYPES[info.dtype]


class Checkpoint(Protocol):
    """The tensors of a model, read on demand."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """Rows `start` to `stop` along the first axis, in the stored dtype.

        Raises AxzooError when the file is damaged.
        """
        ...


def row_blocks(checkpoint: Checkpoint, name: str, start: int, stop: int) -> Iterator[Array]:
    """Yields rows `start` to `stop` in order, about BLOCK_BYTES at a time, in the stored dtype.

    Raises AxzooError for an unsupported dtype or a damaged file.
    """
    return stored_blocks(checkpoint, name, start, stop, numpy_dtype(checkpoint.tensors[name]).itemsize)


def stored_blocks(checkpoint: Checkpoint, name: str, start: int, stop: int, value_bytes: int) -> Iterator[Array]:
    """Like `row_blocks`, for a tensor of any dtype, whose values have `value_bytes` bytes."""
    row_bytes = max(1, math.prod(checkpoint.tensors[name].shape[1:]) * value_bytes)
    step = max(1, BLOCK_BYTES // row_bytes)
    for first in range(start, stop, step):
        yield checkpoint.read_rows(name, first, min(first + step, stop))


def rows_digest(dtype: str, shape: tuple[int, ...]) -> blake3:
    """A BLAKE3 hash of rows of a tensor; the caller updates it with their little-endian bytes."""
    return blake3(f"{dtype}{list(shape)}".encode())
