"""The oracle over real weights: those of a locked checkpoint, or those of built files, dequantized."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.lock import EMBED, INDEX, POST, Part, layer_lock, read_part
from axzoo.checkpoint.tensors import Checkpoint, row_blocks
from axzoo.fetch.receipt import checkpoint_folder
from axzoo.files import read_json
from axzoo.reference import Oracle, Weights
from axzoo.spec import DecoderSpec


def checkpoint_oracle(locks: Path, source: Path) -> Oracle:
    """The checkpoint in fp32, each layer read when it is asked for."""
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
    )


def in_memory(oracle: Oracle) -> Oracle:
    """The same oracle, keeping every weight it has read: for models that fit, asked again and again."""
    return Oracle(
        spec=oracle.spec,
        layer_weights=functools.cache(oracle.layer_weights),
        post_weights=functools.cache(oracle.post_weights),
        embed=oracle.embed,
    )


def _tensors(checkpoint: Checkpoint, part: Part) -> Weights:
    return {
        role: torch.from_numpy(
            np.concatenate([block.astype(np.float32) for block in row_blocks(checkpoint, tensor.name)])
        )
        for role, tensor in part.tensors.items()
    }
