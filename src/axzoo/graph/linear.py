"""Linear layers over stored weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from axzoo.graph.builder import GraphBuilder
from axzoo.quantize.weights import StoredWeight


def linear(
    g: GraphBuilder, x: str, weight: StoredWeight, bias: NDArray[np.float32] | None, name: str, prefix: str
) -> str:
    """x [..., in_features] fp32 -> [..., out_features] fp32.

    Integer codes become DequantizeLinear (one scale per output column) + MatMul, 16-bit floats Cast + MatMul.
    """
    matrix = g.constant(f"{name}.weight", weight.values)
    if weight.scales is not None:
        scales = g.constant(f"{name}.scale", weight.scales)
        matrix = g.op("DequantizeLinear", [matrix, scales], f"{prefix}/{name}/DequantizeLinear", axis=1)
    elif weight.values.dtype != np.float32:
        matrix = g.cast(matrix, "fp32", f"{prefix}/{name}/Cast")
    y = g.op("MatMul", [x, matrix], f"{prefix}/{name}/MatMul")
    if bias is not None:
        y = g.op("Add", [y, g.constant(f"{name}.bias", bias)], f"{prefix}/{name}/Add")
    return y
