"""The oracle on the dequantized weights of a built bundle."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from axzoo.backends.host.contents import read_contents
from axzoo.bundle.manifest import read_manifest
from axzoo.check.stored_weights import as_tensor, dequantized, scales_of
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
        self._contents = read_contents(path)
        self._tensors = {name: t for name, t in self._contents.tensors.items() if name.endswith((".weight", ".bias"))}

    def __getitem__(self, role: str) -> torch.Tensor:
        return torch.cat(list(self.rows(role)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def rows(self, role: str) -> Iterator[torch.Tensor]:
        values = self._tensors[role].array()
        if values.ndim != 2:
            yield torch.from_numpy(values.astype(np.float32))
            return
        scales = scales_of(self._contents, role)
        for start in range(0, values.shape[1], _ROWS):
            part = slice(start, start + _ROWS)
            yield dequantized(as_tensor(values[:, part].T), None if scales is None else scales[:, part])

    @property
    def parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self._tensors.values())


def in_memory(oracle: Oracle) -> Oracle:
    """The same oracle with all weights cached after their first use, for models that fit in memory."""
    return replace(
        oracle,
        layer_weights=functools.cache(lambda index: dict(oracle.layer_weights(index))),
        post_weights=functools.cache(lambda: dict(oracle.post_weights())),
    )
