"""Products of activations in two bytes, by ONNX Runtime's MatMulIntegerToFloat: fastest for many tokens.

The first byte is an activation in steps of a scale, the second what that leaves, in steps of 1/254 of the scale. Both
multiply the int8 codes without rounding, so what is lost of an entry is at most 2**-16 of the largest under one scale;
int8 in blocks loses up to 2**-8 of a block's.

Rows have a scale each: one token's activations may be a thousand times another's. Where they come from a norm, and so
are of like size, all have one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from axzoo.runtime.fast.rewriting import Parts


@dataclass(frozen=True)
class Product:
    """input [1, n, in_features] x the dequantized weights -> output.

    codes [in_features, out_features] of int8 or int4, scales [groups, out_features], each for in_features / groups
    consecutive rows of codes. `is_normed` where a norm made the input.
    """

    input: str
    output: str
    codes: NDArray[Any]
    scales: NDArray[np.float32]
    is_normed: bool = False


@dataclass(frozen=True)
class Kernel:
    """A way to compute products: whether it serves in_features in so many groups, and the nodes that do it."""

    fits: Callable[[int, int], bool]
    multiply: Callable[[Parts, Product], None]


BLOCK = 32
"""Weights of a column that share a scale. The kernel rounds the activations to int8 in the same blocks: llama.cpp's too
are of 32. Twice as long was measured 5 % faster, and it changed answers."""


def _fits_blocks(in_features: int, groups: int) -> bool:
    """Whether the groups are made of whole blocks."""
    return in_features % (groups * BLOCK) == 0


def _multiply_blocks(parts: Parts, product: Product) -> None:
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


BLOCKS = Kernel(_fits_blocks, _multiply_blocks)


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


_ZERO = np.uint8(128)
"""What stands for 0 in an unsigned byte, where the operator does not say."""

_LEAST = np.float32(1e-30)
"""A row of zeros is divided by this."""


def _fits_sixteen_bits(in_features: int, groups: int) -> bool:
    """The operator has one scale for a column."""
    return groups == 1


def _multiply_sixteen_bits(parts: Parts, product: Product) -> None:
    name = product.output
    codes = parts.add_weight(f"{name}/codes", product.codes.astype(np.int8, copy=False), TensorProto.INT8)
    scales = parts.add_weight(f"{name}/scales", product.scales[0], TensorProto.FLOAT)
    sums = [f"{name}/{i}" for i in range(2)]
    activations = _under_one_scale(parts, product) if product.is_normed else _by_rows(parts, product)
    for byte, output in zip(activations.bytes, sums, strict=True):
        inputs = [byte.codes, codes, byte.step, scales, byte.zero]
        parts.add_node("MatMulIntegerToFloat", inputs, [output], "com.microsoft")
    if activations.factors:
        both = parts.add_node("Add", sums, [f"{name}/both"])
        parts.add_node("Mul", [both, activations.factors], [name])
    else:
        parts.add_node("Add", sums, [name])


@dataclass(frozen=True)
class _Byte:
    """Names: activations are (codes - zero) * step."""

    codes: str
    step: str
    zero: str


@dataclass(frozen=True)
class _Activations:
    """The sum of two bytes, times the rows' factors [1, n, 1] if there are some."""

    bytes: tuple[_Byte, _Byte]
    factors: str = ""


def _by_rows(parts: Parts, product: Product) -> _Activations:
    name = product.output
    last_axis = parts.add_constant("two bytes/axis", np.array([-1], np.int64))
    sizes = parts.add_node("Abs", [product.input], [f"{name}/sizes"])
    found = parts.add_node("ReduceMax", [sizes, last_axis], [f"{name}/found"])
    largest = parts.add_node("Clip", [found, parts.add_constant("two bytes/least", _LEAST)], [f"{name}/largest"])
    rows = parts.add_node("Div", [product.input, largest], [f"{name}/rows"])
    steps = [parts.add_constant(f"two bytes/step/{i}", np.float32(1 / 127 / 254**i)) for i in range(2)]
    zero = parts.add_constant("two bytes/zero", _ZERO)
    codes = parts.add_node("QuantizeLinear", [rows, steps[0], zero], [f"{name}/first"])
    first = _Byte(codes, steps[0], zero)
    return _Activations((first, _rest(parts, name, rows, first, steps[1])), largest)


def _under_one_scale(parts: Parts, product: Product) -> _Activations:
    name = product.output
    first = _Byte(f"{name}/first", f"{name}/step", f"{name}/zero")
    parts.add_node("DynamicQuantizeLinear", [product.input], [first.codes, first.step, first.zero])
    part = parts.add_constant("two bytes/part", np.float32(1 / 254))
    step = parts.add_node("Mul", [first.step, part], [f"{name}/second step"])
    return _Activations((first, _rest(parts, name, product.input, first, step)))


def _rest(parts: Parts, name: str, values: str, first: _Byte, step: str) -> _Byte:
    """What the first byte leaves of the values."""
    coarse = parts.add_node("DequantizeLinear", [first.codes, first.step, first.zero], [f"{name}/coarse"])
    rest = parts.add_node("Sub", [values, coarse], [f"{name}/rest"])
    zero = parts.add_constant("two bytes/zero", _ZERO)
    return _Byte(parts.add_node("QuantizeLinear", [rest, step, zero], [f"{name}/second"]), step, zero)


TWO_BYTES = Kernel(_fits_sixteen_bits, _multiply_sixteen_bits)


def is_exact(options: ort.SessionOptions) -> bool:
    """Whether this processor's kernel adds bytes up without clipping: with AVX2 alone, pairs are added in 16 bits."""
    rows, columns = 16, 64
    bytes_, codes = np.full((rows, columns), 255, np.uint8), np.full((columns, rows), 127, np.int8)
    parts = Parts()
    parts.graph.input.append(helper.make_tensor_value_info("bytes", TensorProto.UINT8, bytes_.shape))
    parts.graph.output.append(helper.make_tensor_value_info("sums", TensorProto.INT32, None))
    parts.add_node("MatMulInteger", ["bytes", parts.add_constant("codes", codes)], ["sums"])
    (sums,) = parts.load(options).run(None, {"bytes": bytes_})
    return bool((sums == columns * 255 * 127).all())
