"""Products of activations in two bytes, by ONNX Runtime's MatMulIntegerToFloat: fastest for many tokens.

A token's row is divided by its largest entry. The first byte is the quotient in steps of 1/127, the second what that
leaves, in steps of 1/127/254. Both multiply the int8 codes without rounding, so what is lost of an entry is at most
2**-16 of its row's largest; int8 in blocks loses up to 2**-8 of a block's.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from axzoo.fast.parts import Parts
from axzoo.fast.product import Kernel, Product

_ZERO = 128
"""What stands for 0 in an unsigned byte."""

_LEAST = np.float32(1e-30)
"""A row of zeros is divided by this."""


def _fits(in_features: int, groups: int) -> bool:
    """The operator has one scale for a column."""
    return groups == 1


def _multiply(parts: Parts, product: Product) -> None:
    name = product.output
    codes = parts.add_weight(f"{name}/codes", product.codes.astype(np.int8, copy=False), TensorProto.INT8)
    scales = parts.add_weight(f"{name}/scales", product.scales[0], TensorProto.FLOAT)
    zero = parts.add_constant("two bytes/zero", np.uint8(_ZERO))
    steps = [parts.add_constant(f"two bytes/step/{i}", np.float32(1 / 127 / 254**i)) for i in range(2)]

    def node(op_type: str, *inputs: str, output: str, domain: str = "") -> str:
        parts.add_node(op_type, list(inputs), [output], domain)
        return output

    def multiplied(byte: str, step: str) -> str:
        operator, output = "MatMulIntegerToFloat", f"{byte}/product"
        return node(operator, byte, codes, step, scales, zero, output=output, domain="com.microsoft")

    last_axis = parts.add_constant("two bytes/axis", np.array([-1], np.int64))
    largest = node("ReduceMax", node("Abs", product.input, output=f"{name}/Abs"), last_axis, output=f"{name}/max")
    largest = node("Max", largest, parts.add_constant("two bytes/least", _LEAST), output=f"{name}/largest")
    row = node("Div", product.input, largest, output=f"{name}/row")
    first = node("QuantizeLinear", row, steps[0], zero, output=f"{name}/first")
    coarse = node("DequantizeLinear", first, steps[0], zero, output=f"{name}/coarse")
    rest = node("Sub", row, coarse, output=f"{name}/rest")
    second = node("QuantizeLinear", rest, steps[1], zero, output=f"{name}/second")
    both = node("Add", multiplied(first, steps[0]), multiplied(second, steps[1]), output=f"{name}/both")
    node("Mul", both, largest, output=name)


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
