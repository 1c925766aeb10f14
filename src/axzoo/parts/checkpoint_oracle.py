"""The oracle with the weights of a locked checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.tensors import Checkpoint, row_blocks
from axzoo.fetch.sources import checkpoint_folder
from axzoo.model.oracle import Oracle, StreamedWeights
from axzoo.parts.kind import PartId
from axzoo.parts.kinds.embed import WEIGHT
from axzoo.parts.lock_index import read_index
from axzoo.parts.part import Part, read_part


def checkpoint_oracle(locks: Path, source: Path, max_length: int) -> Oracle:
    """An fp32 oracle for up to `max_length` positions. Weights are read from `source` when they are used."""
    checkpoint = open_checkpoint(checkpoint_folder(source))
    embedding = read_part(locks / PartId("embed").lock_file).tensors[WEIGHT].name

    def embed(ids: Sequence[int]) -> torch.Tensor:
        rows = [checkpoint.read_rows(embedding, token, token + 1) for token in ids]
        return torch.from_numpy(np.concatenate(rows).astype(np.float32))

    return Oracle(
        spec=read_index(locks).spec,
        layer_weights=lambda index: CheckpointWeights(checkpoint, read_part(locks / PartId("layer", index).lock_file)),
        post_weights=lambda: CheckpointWeights(checkpoint, read_part(locks / PartId("post").lock_file)),
        embed=embed,
        max_length=max_length,
    )


def part_weights(locks: Path, source: Path, part: PartId) -> CheckpointWeights:
    """The fp32 tensors of a part of a locked checkpoint by role, read whenever one is used."""
    return CheckpointWeights(open_checkpoint(checkpoint_folder(source)), read_part(locks / part.lock_file))


class CheckpointWeights(StreamedWeights):
    """The tensors of a part, read from the checkpoint whenever they are used. Indexing reads a whole tensor."""

    def __init__(self, checkpoint: Checkpoint, part: Part) -> None:
        self._checkpoint = checkpoint
        self._tensors = part.tensors
        self._parameters = part.parameters

    def __getitem__(self, role: str) -> torch.Tensor:
        return torch.cat(list(self.rows(role)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def rows(self, role: str) -> Iterator[torch.Tensor]:
        tensor = self._tensors[role]
        for block in row_blocks(self._checkpoint, tensor.name, *tensor.rows):
            yield torch.from_numpy(block.astype(np.float32, copy=not block.flags.writeable))

    def shape(self, role: str) -> tuple[int, ...]:
        return self._tensors[role].shape

    @property
    def parameters(self) -> int:
        return self._parameters
