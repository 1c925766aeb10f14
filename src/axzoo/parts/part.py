"""One part of a locked model, as its lock file describes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from axzoo.checkpoint.tensors import Array, Checkpoint, row_blocks, rows_digest
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json, require_format
from axzoo.parts.kind import ModelOutline, PartId, PartKind
from axzoo.parts.kinds import KINDS, kind_of
from axzoo.parts.lock_index import LOCK_FORMAT


@dataclass(frozen=True)
class LockedTensor:
    """`shape[0]` rows of a checkpoint's tensor, from row `start`. The digest covers dtype, shape and bytes."""

    name: str
    start: int
    shape: tuple[int, ...]
    blake3: str

    @property
    def rows(self) -> tuple[int, int]:
        return self.start, self.start + self.shape[0]


@dataclass(frozen=True)
class Part:
    """A part of a locked model: its spec as plain data and its tensors by role."""

    id: PartId
    spec: Mapping[str, Any]
    tensors: Mapping[str, LockedTensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {role: tensor.shape for role, tensor in self.tensors.items()}

    @property
    def parameters(self) -> int:
        """The total number of values of all tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def to_dict(self) -> dict[str, Any]:
        """The content of the part's lock file."""
        tensors = {role: asdict(tensor) for role, tensor in self.tensors.items()}
        return {"format": LOCK_FORMAT, **self.id.to_dict(), "spec": self.spec, "tensors": tensors}


def read_part(path: Path) -> Part:
    """Reads one part's lock file. Raises AxzooError when it is missing, damaged or written by another version."""
    data = read_json(path)
    require_format(data, LOCK_FORMAT, path, f"remove {path.parent} and build again", oldest=LOCK_FORMAT)
    try:
        tensors = {
            role: LockedTensor(entry["name"], entry["start"], tuple(entry["shape"]), entry["blake3"])
            for role, entry in data["tensors"].items()
        }
        part = PartId.from_dict(data)
        kind_of(part.kind).read_spec(data["spec"])
        return Part(part, data["spec"], tensors)
    except AxzooError as error:
        raise AxzooError(f"{path}: {error}: remove {path.parent} and build again") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise AxzooError(f"{path} is damaged: remove {path.parent} and build again") from None


def read_parts(folder: Path, model: ModelOutline, kinds: Iterable[PartKind] = KINDS) -> list[Part]:
    """Reads the parts of `kinds` from a lock's folder, in that order. Raises AxzooError as `read_part` does."""
    return [read_part(folder / part.lock_file) for kind in kinds for part in kind.ids(model)]


def verified_blocks(checkpoint: Checkpoint, tensor: LockedTensor) -> Iterator[Array]:
    """Yields the tensor's rows in blocks. Raises AxzooError after the last block if they differ from the lock."""
    info = checkpoint.tensors.get(tensor.name)
    if info is None or info.shape[1:] != tensor.shape[1:] or info.shape[0] < tensor.rows[1]:
        raise AxzooError(
            f"tensor {tensor.name} is missing or its shape changed since locking: lock the checkpoint again"
        )
    digest = rows_digest(info.dtype, tensor.shape)
    for block in row_blocks(checkpoint, tensor.name, *tensor.rows):
        digest.update(block.view("uint8").data)
        yield block
    if digest.hexdigest() != tensor.blake3:
        raise AxzooError(f"{info.file}: tensor {tensor.name} changed since locking: lock the checkpoint again")
