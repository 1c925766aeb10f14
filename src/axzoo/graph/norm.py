"""Normalization."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from axzoo.graph.builder import GraphBuilder
from axzoo.spec import NormSpec

Vectors = Mapping[str, NDArray[np.float32]]
"""Norm weights ("input_norm.weight") and biases ("q_proj.bias", "input_norm.bias") by role."""


def norm(g: GraphBuilder, spec: NormSpec, x: str, vectors: Vectors, name: str) -> str:
    """x [..., features] fp32, normed over its last axis, same shape."""
    scale = g.constant(f"{name}.weight", vectors[f"{name}.weight"])
    if spec.kind == "rms_norm":
        return g.op("RMSNormalization", [x, scale], f"{name}/RMSNormalization", axis=-1, epsilon=spec.eps)
    bias = g.constant(f"{name}.bias", vectors[f"{name}.bias"])
    return g.op("LayerNormalization", [x, scale, bias], f"{name}/LayerNormalization", axis=-1, epsilon=spec.eps)
