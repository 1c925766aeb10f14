"""The oracle on the dequantized weights of a built bundle."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from axzoo.backends.host.contents import read_contents
from axzoo.bundle.manifest import read_manifest
from axzoo.check.stored_weights import StoredWeights
from axzoo.model.oracle import Oracle
from axzoo.runtime.buffers import Embedding
from axzoo.runtime.bundle_folder import open_bundle


def bundle_oracle(folder: Path) -> Oracle:
    """The oracle on a bundle's dequantized weights: differences from it are only rounding between layers."""
    bundle = open_bundle(folder)
    manifest = read_manifest(folder)
    embedding = Embedding(bundle.embedding, bundle.vocab_size, bundle.hidden_size)

    return Oracle(
        spec=manifest.spec,
        layer_weights=lambda index: StoredWeights(read_contents(bundle.layers[index])),
        post_weights=lambda: StoredWeights(read_contents(bundle.post)),
        embed=lambda ids: torch.from_numpy(embedding.rows(ids).astype(np.float32)),
        max_length=manifest.recipe.positions,
    )


def in_memory(oracle: Oracle) -> Oracle:
    """The same oracle with all weights cached after their first use, for models that fit in memory."""
    return replace(
        oracle,
        layer_weights=functools.cache(lambda index: dict(oracle.layer_weights(index))),
        post_weights=functools.cache(lambda: dict(oracle.post_weights())),
    )
