"""The graph and the oracle both refuse an activation or a norm they do not implement.

Either one substituting another function would make the checks blind: both sides would agree on the wrong numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from axzoo.backends.host import operators
from axzoo.backends.host.builder import GraphBuilder
from axzoo.model import oracle
from axzoo.model.spec import ACTIVATIONS, NORM_KINDS, LayerSpec, NormSpec, RopeSpec
from axzoo.weights.encoding import layer_format
from axzoo.weights.recipe import Recipe
from axzoo.weights.stored import StoredWeight, store_weight

SIZE = 8
LINEARS = ("gate_proj", "up_proj", "down_proj")
VECTORS = {"n.weight": np.ones(SIZE, np.float32), "n.bias": np.zeros(SIZE, np.float32)}
VECTOR_TENSORS = {name: torch.from_numpy(values) for name, values in VECTORS.items()}


def layer(hidden_act: Any, gated: bool) -> LayerSpec:
    spec = LayerSpec(SIZE, SIZE, 2, 2, 4, NormSpec("rms_norm", 1e-6), RopeSpec(1e4, 4), 16, gated=gated)
    object.__setattr__(spec, "hidden_act", hidden_act)  # bypasses the validation of the spec
    return spec


def norm(kind: Any) -> NormSpec:
    spec = NormSpec("rms_norm", 1e-6)
    object.__setattr__(spec, "kind", kind)
    return spec


def both_mlps(spec: LayerSpec) -> list[Any]:
    matrix = np.ones((SIZE, SIZE), np.float32)

    def stored(role: str) -> StoredWeight:
        return store_weight(role, [matrix], matrix.shape, layer_format(Recipe(weight_type="fp32")))

    tensors = {f"{role}.weight": torch.from_numpy(matrix) for role in LINEARS}
    return [
        lambda: operators.mlp(GraphBuilder(), spec, "x", {role: stored(role) for role in LINEARS}, {}),
        lambda: oracle.mlp(spec, tensors, torch.ones(1, SIZE)),
    ]


def both_norms(spec: NormSpec) -> list[Any]:
    return [
        lambda: operators.norm(GraphBuilder(), spec, "x", VECTORS, "n"),
        lambda: oracle.norm(spec, VECTOR_TENSORS, torch.ones(1, SIZE), "n"),
    ]


@pytest.mark.parametrize("gated", [True, False])
def test_activations(gated: bool) -> None:
    for known in ACTIVATIONS:
        for run in both_mlps(layer(known, gated)):
            run()
    for run in both_mlps(layer("relu", gated)):
        with pytest.raises(AssertionError, match="relu"):
            run()


def test_norms() -> None:
    for known in NORM_KINDS:
        for run in both_norms(norm(known)):
            run()
    for run in both_norms(norm("batch_norm")):
        with pytest.raises(AssertionError, match="batch_norm"):
            run()
