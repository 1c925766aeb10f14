"""Writes the tensors of a checkpoint as model.safetensors, a block of rows at a time."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np

from axzoo.checkpoint.tensors import Checkpoint, stored_blocks
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


def write_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    """Writes every tensor of `checkpoint`. Wide dtypes come first, so that all values are aligned, then names in order.

    Tensors of one dtype give the same bytes as the library would write. The file is written atomically. Raises
    AxzooError when a dtype cannot be written, OSError when the file cannot.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    names = sorted(checkpoint.tensors, key=lambda name: (-_value_bytes(checkpoint, name), name))
    for name in names:
        info, size = checkpoint.tensors[name], tensor_bytes(checkpoint, name)
        header[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in filter(partial(tensor_bytes, checkpoint), names):
            rows = (checkpoint.tensors[name].shape or (1,))[0]
            for block in stored_blocks(checkpoint, name, 0, rows, _value_bytes(checkpoint, name)):
                file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)


def _value_bytes(checkpoint: Checkpoint, name: str) -> int:
    info = checkpoint.tensors[name]
    if info.dtype not in _VALUE_BYTES:
        raise AxzooError(f"{info.file}: tensor {name} has dtype {info.dtype}, which axzoo cannot convert")
    return _VALUE_BYTES[info.dtype]
