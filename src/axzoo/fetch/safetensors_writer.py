"""Writing a safetensors file a block of rows at a time; the `safetensors` library needs all tensors in memory.

Format: https://github.com/huggingface/safetensors#format - eight bytes with the header's length, a JSON header padded
with spaces to a multiple of eight, then the tensors' bytes in the header's order.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from axzoo.checkpoint.tensors import DTYPES, Checkpoint, row_blocks
from axzoo.files import atomic_path


def tensor_bytes(checkpoint: Checkpoint, name: str) -> int:
    info = checkpoint.tensors[name]
    return int(np.prod(info.shape)) * DTYPES[info.dtype].itemsize


def write_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    """Writes every tensor of `checkpoint`, all of one dtype, sorted by name: the bytes the library itself would write.

    Raises OSError when the disk refuses; `path` appears whole or not at all.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(checkpoint.tensors):
        info, size = checkpoint.tensors[name], tensor_bytes(checkpoint, name)
        header[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(checkpoint.tensors):
            for block in row_blocks(checkpoint, name, 0, checkpoint.tensors[name].shape[0]):
                file.write(np.ascontiguousarray(block).view(np.uint8).data)
