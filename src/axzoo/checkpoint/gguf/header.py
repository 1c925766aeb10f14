"""The header of a GGUF file, parsed without trusting it: every length is checked against the file size before use.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. (The `gguf` package
has a reader too, but a forged array length makes it loop until memory is exhausted.)
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from axzoo.core.errors import AxzooError

MAX_HEADER_BYTES = 256 << 20
"""Limit of the header size. Real headers have a few megabytes: the vocabulary and the merges."""

_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class RawTensor:
    """A tensor as declared by the header: `shape` is row-major, as in numpy; `offset` counts from the data's start."""

    name: str
    shape: tuple[int, ...]
    type_code: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata (scalars, strings, and arrays as lists), the tensors, and the file offset of the tensor data."""

    metadata: dict[str, Any]
    tensors: tuple[RawTensor, ...]
    data_start: int
    alignment: int


def read_header(path: Path) -> GgufHeader:
    """Parses everything before the tensor data.

    Raises AxzooError when the file is not a supported GGUF file, is truncated, or contradicts itself.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _parse(_Cursor(view))
    except (struct.error, ValueError) as error:  # an empty file, a field beyond the end, a string that is not UTF-8
        raise AxzooError(f"{path} is not a readable GGUF file ({error}): fetch it again") from None


class _Cursor:
    """Reads consecutive values. Raises ValueError instead of reading beyond the end."""

    def __init__(self, view: mmap.mmap) -> None:
        self._view = view
        self._end = min(len(view), MAX_HEADER_BYTES)
        self.position = 0

    def take(self, size: int) -> bytes:
        if size > self._end - self.position:
            raise ValueError(f"a field of {size} bytes at {self.position} goes beyond the end")
        self.position += size
        return self._view[self.position - size : self.position]

    def u32(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])

    def u64(self) -> int:
        return int(struct.unpack("<Q", self.take(8))[0])

    def string(self) -> str:
        return self.take(self.u64()).decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(self.u32(), self.u64())
        return self._scalars(kind, 1)[0]

    def _array(self, kind: int, count: int) -> list[Any]:
        if kind == _ARRAY:
            raise ValueError("an array of arrays")
        if kind == _STRING:
            if count > (self._end - self.position) // 8:
                raise ValueError(f"an array of {count} strings goes beyond the end")
            return [self.string() for _ in range(count)]
        return self._scalars(kind, count)

    def _scalars(self, kind: int, count: int) -> list[Any]:
        if kind not in _SCALARS:
            raise ValueError(f"unknown value type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        values: list[Any] = np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
        return values


def _parse(cursor: _Cursor) -> GgufHeader:
    if cursor.take(4) != b"GGUF":
        raise ValueError("it does not start with GGUF")
    version = cursor.u32()
    if version not in (2, 3):
        raise ValueError(f"version {version} is not supported, only 2 and 3, little-endian")
    tensor_count, metadata_count = cursor.u64(), cursor.u64()
    metadata: dict[str, Any] = {}
    for _ in range(metadata_count):
        key = cursor.string()
        if key in metadata:
            raise ValueError(f"metadata key {key} appears twice")
        metadata[key] = cursor.value(cursor.u32())
    tensors: dict[str, RawTensor] = {}
    for _ in range(tensor_count):
        tensor = _tensor(cursor)
        if tensor.name in tensors:
            raise ValueError(f"tensor {tensor.name} appears twice")
        tensors[tensor.name] = tensor
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment {alignment!r} is not a power of two")
    data_start = -(-cursor.position // alignment) * alignment
    return GgufHeader(metadata, tuple(tensors.values()), data_start, alignment)


def _tensor(cursor: _Cursor) -> RawTensor:
    name, dimensions = cursor.string(), cursor.u32()
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise ValueError(f"tensor {name} has {dimensions} dimensions")
    shape = tuple(cursor.u64() for _ in range(dimensions))[::-1]
    if 0 in shape:
        raise ValueError(f"tensor {name} has shape {list(shape)}")
    return RawTensor(name, shape, type_code=cursor.u32(), offset=cursor.u64())
