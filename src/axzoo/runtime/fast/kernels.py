"""Integer kernels for matrix products with 8-bit or 16-bit activations.

EIGHT_BIT rounds activations to int8 in blocks of 32 (ONNX Runtime's MatMulNBits). It is the fastest for single tokens
and loses up to 2**-8 of a block's largest activation.

SIXTEEN_BIT computes with two bytes per activation (MatMulIntegerToFloat), which is the fastest for many tokens. The
high byte is the activation in steps of a scale. The low byte is the remainder in steps of 1/254 of that scale. Both are
multiplied by the int8 codes exactly, so an activation loses at most 2**-16 of the largest one that shares its scale.
Each token has its own scale, because activations of one token may be a thousand times larger than those of another.
After a norm they are of similar size, and all tokens share one scale.
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

from axzoo.runtime.fast.rewriting import FusedGraphBuilder


@dataclass(frozen=True)
class MatMul:
    """The product of an input [1, n, in_features] and dequantized weights.

    codes [in_features, out_features] are int8 or int4. scales [groups, out_features] each apply to in_features / groups
    consecutive rows of codes. `follows_norm` says that the input is the output of a norm.
    """

    input: str
    output: str
    codes: NDArray[Any]
    scales: NDArray[np.float32]
    follows_norm: bool = False


@dataclass(frozen=True)
class Kernel:
    """A way to compute a MatMul.

    `supports` says whether the kernel handles weights with in_features rows in a number of groups; `add` adds its nodes
    to a graph.
    """

    supports: Callable[[int, int], bool]
    add: Callable[[FusedGraphBuilder, MatMul], None]


BLOCK_SIZE = 32
"""Input features that share a scale, in weights and activations.

llama.cpp uses blocks of 32 too. Blocks of 64 were measured to be 5 % faster, but they changed answers.
"""


def _supports_blocks(in_features: int, groups: int) -> bool:
    """Whether the groups consist of whole blocks."""
    return in_features % (groups * BLOCK_SIZE) == 0


def _add_eight_bit(builder: FusedGraphBuilder, matmul: MatMul) -> None:
    packed, scales = pack_blocks(matmul.codes, matmul.scales)
    codes_name = builder.add_weight(f"{matmul.output}/codes", packed, onnx.TensorProto.UINT8)
    scales_name = builder.add_weight(f"{matmul.output}/scales", scales, onnx.TensorProto.FLOAT)
    builder.add_node(
        "MatMulNBits",
        [matmul.input, codes_name, scales_name],
        [matmul.output],
        domain="com.microsoft",
        K=matmul.codes.shape[0],
        N=matmul.codes.shape[1],
        bits=8 if matmul.codes.dtype == np.int8 else 4,
        block_size=BLOCK_SIZE,
        accuracy_level=4,  # int8 activations
    )


EIGHT_BIT = Kernel(_supports_blocks, _add_eight_bit)


def pack_blocks(codes: NDArray[Any], scales: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Convert codes and scales to the layout of MatMulNBits. The dequantized weights stay the same.

    codes [in_features, out_features] int8 or int4 -> [out_features, blocks, bytes per block], offset to be unsigned;
    two int4 codes share a byte, the first one in the low half. scales [groups, out_features] -> [out_features, blocks].
    """
    rows, columns = codes.shape
    blocks = rows // BLOCK_SIZE
    if codes.dtype == np.int8:
        packed = np.ascontiguousarray((codes.view(np.uint8) ^ np.uint8(128)).T).reshape(columns, blocks, BLOCK_SIZE)
    else:
        shifted = (codes.T.astype(np.int8) + np.int8(8)).view(np.uint8).reshape(columns, blocks, BLOCK_SIZE)
        packed = shifted[..., 0::2] | shifted[..., 1::2] << np.uint8(4)
    return packed, np.repeat(scales.T, blocks // len(scales), axis=1).astype(np.float32)


_ZERO_POINT = np.uint8(128)

_MIN_ROW_SCALE = np.float32(1e-30)
"""Avoids a division by zero in rows of zeros."""


def _supports_one_group(in_features: int, groups: int) -> bool:
    """MatMulIntegerToFloat takes one scale per column."""
    return groups == 1


def _add_sixteen_bit(builder: FusedGraphBuilder, matmul: MatMul) -> None:
    name = matmul.output
    codes = builder.add_weight(f"{name}/codes", matmul.codes.astype(np.int8, copy=False), TensorProto.INT8)
    scales = builder.add_weight(f"{name}/scales", matmul.scales[0], TensorProto.FLOAT)
    sums = [f"{name}/{i}" for i in range(2)]
    quantized = _quantize_per_tensor(builder, matmul) if matmul.follows_norm else _quantize_per_row(builder, matmul)
    for byte, output in zip(quantized.bytes, sums, strict=True):
        inputs = [byte.codes, codes, byte.scale, scales, byte.zero_point]
        builder.add_node("MatMulIntegerToFloat", inputs, [output], "com.microsoft")
    if quantized.row_scales:
        total = builder.add_node("Add", sums, [f"{name}/sum"])
        builder.add_node("Mul", [total, quantized.row_scales], [name])
    else:
        builder.add_node("Add", sums, [name])


@dataclass(frozen=True)
class _Byte:
    """Names of values: the activations are (codes - zero_point) * scale."""

    codes: str
    scale: str
    zero_point: str


@dataclass(frozen=True)
class _Quantized:
    """Activations as the sum of a high and a low byte, multiplied by the scales of the rows [1, n, 1] if given."""

    bytes: tuple[_Byte, _Byte]
    row_scales: str = ""


def _quantize_per_row(builder: FusedGraphBuilder, matmul: MatMul) -> _Quantized:
    name = matmul.output
    last_axis = builder.add_constant("16-bit/axis", np.array([-1], np.int64))
    magnitudes = builder.add_node("Abs", [matmul.input], [f"{name}/magnitudes"])
    max_abs = builder.add_node("ReduceMax", [magnitudes, last_axis], [f"{name}/max_abs"])
    min_scale = builder.add_constant("16-bit/min_scale", _MIN_ROW_SCALE)
    row_scales = builder.add_node("Clip", [max_abs, min_scale], [f"{name}/row_scales"])
    rows = builder.add_node("Div", [matmul.input, row_scales], [f"{name}/rows"])
    scales = [builder.add_constant(f"16-bit/scale/{i}", np.float32(1 / 127 / 254**i)) for i in range(2)]
    zero_point = builder.add_constant("16-bit/zero_point", _ZERO_POINT)
    codes = builder.add_node("QuantizeLinear", [rows, scales[0], zero_point], [f"{name}/high"])
    high = _Byte(codes, scales[0], zero_point)
    return _Quantized((high, _low_byte(builder, name, rows, high, scales[1])), row_scales)


def _quantize_per_tensor(builder: FusedGraphBuilder, matmul: MatMul) -> _Quantized:
    name = matmul.output
    high = _Byte(f"{name}/high", f"{name}/scale", f"{name}/zero_point")
    builder.add_node("DynamicQuantizeLinear", [matmul.input], [high.codes, high.scale, high.zero_point])
    step = builder.add_constant("16-bit/step", np.float32(1 / 254))
    scale = builder.add_node("Mul", [high.scale, step], [f"{name}/low scale"])
    return _Quantized((high, _low_byte(builder, name, matmul.input, high, scale)))


def _low_byte(builder: FusedGraphBuilder, name: str, values: str, high: _Byte, scale: str) -> _Byte:
    """Quantize the remainder that the high byte leaves."""
    coarse = builder.add_node("DequantizeLinear", [high.codes, high.scale, high.zero_point], [f"{name}/coarse"])
    remainder = builder.add_node("Sub", [values, coarse], [f"{name}/remainder"])
    zero_point = builder.add_constant("16-bit/zero_point", _ZERO_POINT)
    codes = builder.add_node("QuantizeLinear", [remainder, scale, zero_point], [f"{name}/low"])
    return _Byte(codes, scale, zero_point)


SIXTEEN_BIT = Kernel(_supports_one_group, _add_sixteen_bit)


def has_exact_int8_matmul(options: ort.SessionOptions) -> bool:
    """Whether this processor sums products of bytes exactly. AVX2 alone saturates sums of two products at 16 bits."""
    rows, columns = 16, 64
    activations, codes = np.full((rows, columns), 255, np.uint8), np.full((columns, rows), 127, np.int8)
    builder = FusedGraphBuilder()
    builder.graph.input.append(helper.make_tensor_value_info("activations", TensorProto.UINT8, activations.shape))
    builder.graph.output.append(helper.make_tensor_value_info("sums", TensorProto.INT32, None))
    builder.add_node("MatMulInteger", ["activations", builder.add_constant("codes", codes)], ["sums"])
    (sums,) = builder.load(options).run(None, {"activations": activations})
    return bool((sums == columns * 255 * 127).all())
