"""Multiplying with a number."""

from __future__ import annotations

import numpy as np

from axzoo.graph.builder import GraphBuilder


def scaled(g: GraphBuilder, x: str, factor: float, name: str) -> str:
    """x * factor, or x itself where the factor is 1."""
    if factor == 1.0:
        return x
    return g.op("Mul", [x, g.constant(f"{name}.factor", np.array(factor, np.float32))], f"{name}/Mul")
