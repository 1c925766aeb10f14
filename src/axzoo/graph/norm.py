"""Normalization."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from axzoo.graph.builder import GraphBuilder


def rms_norm(g: GraphBuilder, x: str, weight: NDArray[np.float32], eps: float, name: str) -> str:
    """x [..., hidden_size] fp32 -> x / sqrt(mean(x^2) + eps) * weight, same shape."""
    scale = g.constant(f"{name}.weight", weight)
    return g.op("RMSNormalization", [x, scale], f"{name}/RMSNormalization", axis=-1, epsilon=eps)
