"""The oracle on the dequantized weights of a built bundle."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from axzoo.bundle.manifest import read_manifest
from axzoo.checkpoint.tensors import Array
from axzoo.model.oracle import Oracle, Weights
from axzoo.runtime.buffers import Embedding
from axzoo.runtime.bundle_folder import open_bundle


def bundle_oracle(folder: Path) -> Oracle:
    """The oracle on a bundle's dequantized weights: differences from it are only rounding between layers."""
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
        max_length=manifest.recipe.positions,
    )


def _dequantized(values: Array, scale: Array | None) -> torch.Tensor:
    """Dequantizes a stored matrix [in_features, out_features] -> [out_features, in_features]; vectors are unchanged.

    scale [out_features], or [groups, out_features] for groups of equal size along in_features.
    """
    numbers = values.astype(np.float32)
    if scale is not None:
        groups = np.atleast_2d(scale)
        numbers = numbers * np.repeat(groups, len(numbers) // len(groups), axis=0)
    return torch.from_numpy(np.ascontiguousarray(numbers.T))


def in_memory(oracle: Oracle) -> Oracle:
    """The same oracle with all weights cached after their first use, for models that fit in memory."""
    return replace(
        oracle,
        layer_weights=functools.cache(lambda index: dict(oracle.layer_weights(index))),
        post_weights=functools.cache(lambda: dict(oracle.post_weights())),
    )
