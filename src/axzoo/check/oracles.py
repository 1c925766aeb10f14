"""The oracle on the dequantized weights of a built bundle."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from axzoo.bundle.manifest import read_manifest
from axzoo.checkpoint.tensors import Array
from axzoo.model.oracle import Oracle, StreamedWeights
from axzoo.runtime.buffers import Embedding
from axzoo.runtime.bundle_folder import open_bundle


def bundle_oracle(folder: Path) -> Oracle:
    """The oracle on a bundle's dequantized weights: differences from it are only rounding between layers."""
    bundle = open_bundle(folder)
    manifest = read_manifest(folder)
    embedding = Embedding(bundle.embedding, bundle.vocab_size, bundle.hidden_size)

    return Oracle(
        spec=manifest.spec,
        layer_weights=lambda index: FileWeights(bundle.layers[index]),
        post_weights=lambda: FileWeights(bundle.post),
        embed=lambda ids: torch.from_numpy(embedding.rows(ids).astype(np.float32)),
        max_length=manifest.recipe.positions,
    )


_ROWS = 4096
"""The rows of a matrix that are dequantized at a time."""


class FileWeights(StreamedWeights):
    """The tensors of a compiled file, dequantized whenever they are used. Indexing dequantizes a whole tensor."""

    def __init__(self, path: Path) -> None:
        import onnx

        initializers = onnx.load(path).graph.initializer
        self._arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in initializers}

    def __getitem__(self, role: str) -> torch.Tensor:
        return torch.cat(list(self.rows(role)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def rows(self, role: str) -> Iterator[torch.Tensor]:
        values = self._arrays[role]
        if values.ndim != 2 or not role.endswith(".weight"):
            yield torch.from_numpy(values.astype(np.float32))
            return
        scales = self._arrays.get(f"{role.removesuffix('.weight')}.scale")
        for start in range(0, values.shape[1], _ROWS):
            part = slice(start, start + _ROWS)
            yield _dequantized(values[:, part], None if scales is None else np.atleast_2d(scales)[:, part])

    @property
    def parameters(self) -> int:
        return sum(array.size for array in self._arrays.values())


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
