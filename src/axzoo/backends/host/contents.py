"""Reads what the checks compare: the tensors of an .axmodel, as views of the file, and a digest of everything else."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from axzoo.backends.host.container import METADATA_KEY, Header, parse_header
from axzoo.backends.host.outline import map_file
from axzoo.backends.host.protobuf import Message
from axzoo.core.dtypes import NUMPY_DTYPES, ONNX_DTYPES
from axzoo.core.errors import AxzooError

_DTYPES = {number: name for name, number in ONNX_DTYPES.items()}
_GRAPH, _OPSETS, _METADATA = 7, 8, 14  # ModelProto
_NODES, _INITIALIZERS, _INPUTS, _OUTPUTS = 1, 5, 11, 12  # GraphProto
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9  # TensorProto


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as stored: `raw` is a view of the file, which has two int4 codes per byte, the first in the low half."""

    dtype: str
    shape: tuple[int, ...]
    raw: memoryview

    def array(self) -> NDArray[Any]:
        """The values in the stored dtype, without a copy; int4 as a copy in int8."""
        if self.dtype == "int4":
            return _unpacked(np.frombuffer(self.raw, np.uint8), math.prod(self.shape)).reshape(self.shape)
        return np.frombuffer(self.raw, NUMPY_DTYPES[self.dtype]).reshape(self.shape)


def _unpacked(packed: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    codes = np.empty(2 * packed.size, np.int8)
    codes[0::2] = packed.view(np.int8) << 4
    codes[1::2] = packed.view(np.int8)
    codes >>= 4  # arithmetic: extends the sign
    return codes[:count]


@dataclass(frozen=True)
class FileContents:
    """The tensors of a file by name, and its header."""

    tensors: Mapping[str, StoredTensor]
    header: Header
    _model: Message

    def structure(self, weights: Collection[str]) -> str:
        """A digest of the graph, its constants and its shape groups, without the values of the tensors `weights`.

        Two files with the same structure compute the same function of their inputs and those tensors.
        """
        digest = blake3()
        for graph in self._model.messages(_GRAPH):
            for number in (_NODES, _INPUTS, _OUTPUTS):
                _update(digest, number, graph.views(number))
        _update(digest, _OPSETS, self._model.views(_OPSETS))
        for name, tensor in self.tensors.items():
            values = b"" if name in weights else tensor.raw
            _update(digest, _INITIALIZERS, [name.encode(), tensor.dtype.encode(), str(tensor.shape).encode(), values])
        _update(digest, _METADATA, [repr(self.header.groups).encode()])
        return digest.hexdigest()


def read_contents(path: Path) -> FileContents:
    """Reads a file that `loadable_header` accepts. Raises AxzooError when it is damaged or was not built by axzoo."""
    try:
        model = Message(memoryview(map_file(path)))
        tensors = [tensor for graph in model.messages(_GRAPH) for tensor in graph.messages(_INITIALIZERS)]
        stored = {tensor.text(_NAME): _stored(tensor) for tensor in tensors}
        metadata = {entry.text(1): entry.text(2) for entry in model.messages(_METADATA)}
    except (ValueError, LookupError) as error:
        raise AxzooError(f"{path} is damaged ({error!s:.200}): build it again") from None
    return FileContents(stored, parse_header(metadata.get(METADATA_KEY), path), model)


def _stored(tensor: Message) -> StoredTensor:
    shape, dtype = tuple(tensor.integers(_DIMS)), _DTYPES[tensor.integer(_DATA_TYPE)]
    raw = [memoryview(b""), *tensor.views(_RAW_DATA)][-1]
    count = math.prod(shape)
    expected = -(-count // 2) if dtype == "int4" else count * NUMPY_DTYPES[dtype].itemsize
    if len(raw) != expected:
        raise ValueError(f"tensor {tensor.text(_NAME)!r:.80} has {len(raw)} bytes instead of {expected}")
    return StoredTensor(dtype, shape, raw)


def _update(digest: blake3, number: int, values: Collection[bytes | memoryview]) -> None:
    digest.update(f"{number}:{len(values)}".encode())
    for value in values:
        digest.update(f"{len(value)}:".encode())
        digest.update(value)
