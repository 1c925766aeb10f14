"""The oracle over the weights of a locked checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.tensors import Array, Checkpoint, row_blocks
from axzoo.core.files import read_json
from axzoo.fetch.sources import checkpoint_folder
from axzoo.model.oracle import Oracle, Weights
from axzoo.model.spec import DecoderSpec
from axzoo.parts.lock import EMBED, INDEX, POST, layer_lock
from axzoo.parts.part import LockedTensor, Part, read_part


def checkpoint_oracle(locks: Path, source: Path, max_length: int) -> Oracle:
    """The checkpoint in fp32, each layer read when it is asked for; for files that hold `max_length` positions."""
    checkpoint = open_checkpoint(checkpoint_folder(source))
    embedding = read_part(locks / EMBED).tensors["embed.weight"].name

    def embed(ids: Sequence[int]) -> torch.Tensor:
        rows = [checkpoint.read_rows(embedding, token, token + 1) for token in ids]
        return torch.from_numpy(np.concatenate(rows).astype(np.float32))

    return Oracle(
        spec=DecoderSpec.from_dict(read_json(locks / INDEX)["spec"]),
        layer_weights=lambda index: _tensors(checkpoint, read_part(locks / layer_lock(index))),
        post_weights=lambda: _tensors(checkpoint, read_part(locks / POST)),
        embed=embed,
        max_length=max_length,
    )


def _tensors(checkpoint: Checkpoint, part: Part) -> Weights:
    return {role: torch.from_numpy(_values(checkpoint, tensor)) for role, tensor in part.tensors.items()}


def _values(checkpoint: Checkpoint, tensor: LockedTensor) -> Array:
    blocks = row_blocks(checkpoint, tensor.name, *tensor.rows)
    return np.concatenate([block.astype(np.float32) for block in blocks])
