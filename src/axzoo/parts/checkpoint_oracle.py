"""The oracle with the weights of a locked checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.tensors import Array, Checkpoint, row_blocks
from axzoo.fetch.sources import checkpoint_folder
from axzoo.model.oracle import Oracle, Weights
from axzoo.parts.kind import PartId
from axzoo.parts.kinds.embed import WEIGHT
from axzoo.parts.lock_index import read_index
from axzoo.parts.part import LockedTensor, Part, read_part


def checkpoint_oracle(locks: Path, source: Path, max_length: int) -> Oracle:
    """An fp32 oracle for up to `max_length` positions. Each layer is read from `source` when it is needed."""
    checkpoint = open_checkpoint(checkpoint_folder(source))
    embedding = read_part(locks / PartId("embed").lock_file).tensors[WEIGHT].name

    def embed(ids: Sequence[int]) -> torch.Tensor:
        rows = [checkpoint.read_rows(embedding, token, token + 1) for token in ids]
        return torch.from_numpy(np.concatenate(rows).astype(np.float32))

    return Oracle(
        spec=read_index(locks).spec,
        layer_weights=lambda index: _tensors(checkpoint, read_part(locks / PartId("layer", index).lock_file)),
        post_weights=lambda: _tensors(checkpoint, read_part(locks / PartId("post").lock_file)),
        embed=embed,
        max_length=max_length,
    )


class _LazyWeights(Mapping[str, torch.Tensor]):
    """A part's tensors by role, read whenever one is used."""

    def __init__(self, checkpoint: Checkpoint, part: Part) -> None:
        self._checkpoint, self._part = checkpoint, part

    def __getitem__(self, role: str) -> torch.Tensor:
        return torch.from_numpy(_values(self._checkpoint, self._part.tensors[role]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._part.tensors)

    def __len__(self) -> int:
        return len(self._part.tensors)


def part_weights(locks: Path, source: Path, part: PartId) -> Weights:
    """The fp32 tensors of a part of a locked checkpoint by role, read whenever one is used."""
    return _LazyWeights(open_checkpoint(checkpoint_folder(source)), read_part(locks / part.lock_file))


def _tensors(checkpoint: Checkpoint, part: Part) -> Weights:
    return {role: torch.from_numpy(_values(checkpoint, tensor)) for role, tensor in part.tensors.items()}


def _values(checkpoint: Checkpoint, tensor: LockedTensor) -> Array:
    blocks = row_blocks(checkpoint, tensor.name, *tensor.rows)
    return np.concatenate([block.astype(np.float32) for block in blocks])
