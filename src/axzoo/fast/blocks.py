"""Products by ONNX Runtime's MatMulNBits (its ContribOperators.md), fastest for single tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from axzoo.fast.parts import Parts
from axzoo.fast.product import Kernel, Product

BLOCK = 32
"""Weights of a column that share a scale. The kernel rounds the activations to int8 in the same blocks: llama.cpp's too
are of 32. Twice as long was measured 5 % faster, and it changed answers."""


def _fits(in_features: int, groups: int) -> bool:
    """Whether the groups are made of whole blocks."""
    return in_features % (groups * BLOCK) == 0


def _multiply(parts: Parts, product: Product) -> None:
    packed, scales = block(product.codes, product.scales)
    codes = parts.add_weight(f"{product.output}/codes", packed, onnx.TensorProto.UINT8)
    spread = parts.add_weight(f"{product.output}/scales", scales, onnx.TensorProto.FLOAT)
    parts.add_node(
        "MatMulNBits",
        [product.input, codes, spread],
        [product.output],
        domain="com.microsoft",
        K=product.codes.shape[0],
        N=product.codes.shape[1],
        bits=8 if product.codes.dtype == np.int8 else 4,
        block_size=BLOCK,
        accuracy_level=4,  # int8 activations
    )


BLOCKS = Kernel(_fits, _multiply)


def block(codes: NDArray[Any], scales: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """codes [in_features, out_features] of int8 or int4, scales [groups, out_features] -> the same numbers as codes
    [out_features, blocks, bytes of a block], shifted to be unsigned, int4 two to a byte with the first in the low half,
    and scales [out_features, blocks]."""
    rows, columns = codes.shape
    blocks = rows // BLOCK
    if codes.dtype == np.int8:
        packed = np.ascontiguousarray((codes.view(np.uint8) ^ np.uint8(128)).T).reshape(columns, blocks, BLOCK)
    else:
        shifted = (codes.T.astype(np.int8) + np.int8(8)).view(np.uint8).reshape(columns, blocks, BLOCK)
        packed = shifted[..., 0::2] | shifted[..., 1::2] << np.uint8(4)
    return packed, np.repeat(scales.T, blocks // len(scales), axis=1).astype(np.float32)
