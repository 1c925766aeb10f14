"""Writes tensors as model.safetensors, a block of rows at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from axzoo.checkpoint.tensors import Array, Checkpoint, stored_blocks
from axzoo.core.errors import AxzooError
from axzoo.core.files import atomic_path

CONVERTED = "model.safetensors"
"""The file that conversions write."""

_VALUE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "F16": 2, "BF16": 2, "I32": 4, "F32": 4, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of a value, by safetensors' names of dtypes."""


def tensor_bytes(checkpoint: Checkpoint, name: str) -> int:
    """The size of a tensor. Raises AxzooError when its dtype cannot be written."""
    return math.prod(checkpoint.tensors[name].shape) * _value_bytes(checkpoint, name)


@dataclass(frozen=True)
class StreamedTensor:
    """A tensor to write. `read` returns all of its rows as consecutive blocks."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Iterable[Array]]

    @property
    def value_bytes(self) -> int:
        return _VALUE_BYTES[self.dtype]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.value_bytes


def write_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    """Writes every tensor of `checkpoint`. Raises AxzooError when a dtype cannot be written, OSError when the file
    cannot."""

    def tensor(name: str) -> StreamedTensor:
        info, value_bytes = checkpoint.tensors[name], _value_bytes(checkpoint, name)
        rows = (info.shape or (1,))[0]
        return StreamedTensor(
            name, info.dtype, info.shape, partial(stored_blocks, checkpoint, name, 0, rows, value_bytes)
        )

    write_streamed(path, [tensor(name) for name in checkpoint.tensors])


def write_streamed(path: Path, tensors: Sequence[StreamedTensor]) -> None:
    """Writes the tensors. Wide dtypes come first, so that all values are aligned, then names in order.

    Tensors of one dtype give the same bytes as the library would write. The file is written atomically. Raises OSError
    when it cannot be written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    ordered = sorted(tensors, key=lambda tensor: (-tensor.value_bytes, tensor.name))
    for tensor in ordered:
        ends = [offset, offset + tensor.bytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": ends}
        offset = ends[1]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            for block in tensor.read() if tensor.bytes else ():
                file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)


def _value_bytes(checkpoint: Checkpoint, name: str) -> int:
    info = checkpoint.tensors[name]
    if info.dtype not in _VALUE_BYTES:
        raise AxzooError(f"{info.file}: tensor {name} has dtype {info.dtype}, which axzoo cannot convert")
    return _VALUE_BYTES[info.dtype]
