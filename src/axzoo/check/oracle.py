"""The oracle over real weights: those of a locked checkpoint, or those of built files, dequantized."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.part import LockedTensor, Part, read_part
from axzoo.checkpoint.tensors import Array, Checkpoint, row_blocks
from axzoo.fetch.receipt import checkpoint_folder
from axzoo.files import read_json
from axzoo.lock_files import EMBED, INDEX, POST, layer_lock
from axzoo.manifest import read_manifest
from axzoo.reference import Oracle, Weights
from axzoo.runtime.bundle import open_bundle
from axzoo.runtime.embedding import Embedding
from axzoo.spec import DecoderSpec


def checkpoint_oracle(locks: Path, source: Path, longest: int) -> Oracle:
    """The checkpoint in fp32, each layer read when it is asked for; for files that hold `longest` positions."""
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
        longest=longest,
    )


def bundle_oracle(folder: Path) -> Oracle:
    """The weights of a built bundle, dequantized to fp32: what remains of its error is rounding between layers."""
    import onnx

    bundle = open_bundle(folder)
    manifest = read_manifest(folder)
    embedding = Embedding(bundle.embedding, bundle.vocab_size, bundle.hidden_size)

    def weights(path: Path) -> Weights:
        arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        return {
            name: _dequantized(array, arrays.get(name.removesuffix(".weight") + ".scale"))
            for name, array in arrays.items()
        }

    return Oracle(
        spec=manifest.spec,
        layer_weights=lambda index: weights(bundle.layers[index]),
        post_weights=lambda: weights(bundle.post),
        embed=lambda ids: torch.from_numpy(embedding.rows(ids).astype(np.float32)),
        longest=manifest.recipe.positions,
    )


def _dequantized(values: Array, scale: Array | None) -> torch.Tensor:
    """A matrix as stored, [in_features, out_features], becomes [out_features, in_features]; vectors stay.

    scale [out_features] or, for equal groups of rows as stored, [groups, out_features].
    """
    numbers = values.astype(np.float32)
    if scale is not None:
        groups = np.atleast_2d(scale)
        numbers = numbers * np.repeat(groups, len(numbers) // len(groups), axis=0)
    return torch.from_numpy(np.ascontiguousarray(numbers.T))


def in_memory(oracle: Oracle) -> Oracle:
    """The same oracle, keeping every weight it has read: for models that fit, asked again and again."""
    return replace(
        oracle,
        layer_weights=functools.cache(oracle.layer_weights),
        post_weights=functools.cache(oracle.post_weights),
    )


def _tensors(checkpoint: Checkpoint, part: Part) -> Weights:
    return {role: torch.from_numpy(_values(checkpoint, tensor)) for role, tensor in part.tensors.items()}


def _values(checkpoint: Checkpoint, tensor: LockedTensor) -> Array:
    blocks = row_blocks(checkpoint, tensor.name, *tensor.rows)
    return np.concatenate([block.astype(np.float32) for block in blocks])
