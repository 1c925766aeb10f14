"""Products of activations in two bytes, by ONNX Runtime's MatMulIntegerToFloat: fastest for many tokens.

The first byte is an activation in steps of a scale, the second what that leaves, in steps of 1/254 of the scale. Both
multiply the int8 codes without rounding, so what is lost of an entry is at most 2**-16 of the largest under one scale;
int8 in blocks loses up to 2**-8 of a block's.

Rows have a scale each: one token's activations may be a thousand times another's. Where they come from a norm, and so
are of like size, all have one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from axzoo.fast.parts import Parts
from axzoo.fast.product import Kernel, Product

_ZERO = np.uint8(128)
"""What stands for 0 in an unsigned byte, where the operator does not say."""

_LEAST = np.float32(1e-30)
"""A row of zeros is divided by this."""


def _fits(in_features: int, groups: int) -> bool:
    """The operator has one scale for a column."""
    return groups == 1


def _multiply(parts: Parts, product: Product) -> None:
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


TWO_BYTES = Kernel(_fits, _multiply)


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
