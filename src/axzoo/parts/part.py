"""One part of a locked model - a layer, the post layer, the embedding - as its lock file tells of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axzoo.checkpoint.tensors import Array, Checkpoint, row_blocks, rows_digest
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json


@dataclass(frozen=True)
class LockedTensor:
    """Rows of a checkpoint's tensor, `shape[0]` of them from `start` on; the digest is of dtype, shape and bytes."""

    name: str
    start: int
    shape: tuple[int, ...]
    blake3: str

    @property
    def rows(self) -> tuple[int, int]:
        return self.start, self.start + self.shape[0]


@dataclass(frozen=True)
class Part:
    """A part's spec as plain data, and its tensors by role."""

    spec: Mapping[str, Any]
    tensors: Mapping[str, LockedTensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {role: tensor.shape for role, tensor in self.tensors.items()}


def read_part(path: Path) -> Part:
    """Reads one part's lock file. Raises AxzooError when it is missing or damaged."""
    data = read_json(path)
    try:
        tensors = {
            role: LockedTensor(entry["name"], entry["start"], tuple(entry["shape"]), entry["blake3"])
            for role, entry in data["tensors"].items()
        }
        return Part(data["spec"], tensors)
    except (KeyError, TypeError, AttributeError):
        raise AxzooError(
            f"{path} is damaged, or of another version of axzoo: remove {path.parent} and build again"
        ) from None


def verified_blocks(checkpoint: Checkpoint, tensor: LockedTensor) -> Iterator[Array]:
    """The tensor's rows in blocks; after the last one, raises AxzooError if they are not what was locked."""
    info = checkpoint.tensors.get(tensor.name)
    if info is None or info.shape[1:] != tensor.shape[1:] or info.shape[0] < tensor.rows[1]:
        raise AxzooError(f"tensor {tensor.name} is not what was locked: lock the checkpoint again")
    digest = rows_digest(info.dtype, tensor.shape)
    for block in row_blocks(checkpoint, tensor.name, *tensor.rows):
        digest.update(block.view("uint8").data)
        yield block
    if digest.hexdigest() != tensor.blake3:
        raise AxzooError(f"{info.file}: tensor {tensor.name} changed after it was locked: lock the checkpoint again")
