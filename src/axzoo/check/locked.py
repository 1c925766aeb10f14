"""The tensors of a locked checkpoint, in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.tensors import row_blocks
from axzoo.fetch.sources import checkpoint_folder
from axzoo.parts.kind import PartId
from axzoo.parts.part import Part, read_part


class LockedCheckpoint:
    """Reads the tensors that a lock names from the checkpoint in `source`, in blocks of rows."""

    def __init__(self, locks: Path, source: Path) -> None:
        self._locks = locks
        self._checkpoint = open_checkpoint(checkpoint_folder(source))

    def part(self, part: PartId) -> Part:
        return read_part(self._locks / part.lock_file)

    def blocks(self, part: PartId, role: str) -> Iterator[NDArray[np.float32]]:
        """Yields the rows of a tensor in order, a few megabytes at a time."""
        tensor = self.part(part).tensors[role]
        for block in row_blocks(self._checkpoint, tensor.name, *tensor.rows):
            yield block.astype(np.float32)

    def tensor(self, part: PartId, role: str) -> Tensor:
        """A whole tensor."""
        return torch.from_numpy(np.concatenate(list(self.blocks(part, role))))
