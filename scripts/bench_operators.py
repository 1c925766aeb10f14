"""Profile fast mode by operator, and compare its matrix products with other operators.

    python scripts/bench_operators.py [--rounds N]

Run `make demo` first. The first two tables are ONNX Runtime's profile of a 128-token prompt and of 128 generated
tokens, by operator, each in its fastest mode; profiling itself takes time. The last table compares the matrix products
of all layers, with random weights, for several numbers of tokens: with the two kernels of fast mode, with every
operator that ONNX Runtime has for int8 weights, and in fp32, in alternation.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from bench import table
from bench_speed import BUNDLE, COUNT
from onnx import TensorProto, helper

from axzoo.runtime.engine import shared_options
from axzoo.runtime.fast import network as fused_files
from axzoo.runtime.fast.kernels import EIGHT_BIT, SIXTEEN_BIT, MatMul
from axzoo.runtime.fast.rewriting import FusedGraphBuilder
from axzoo.runtime.model import load_model

LAYERS = 30
SHAPES = ((576, 960), (576, 576), (576, 3072), (1536, 576))
"""Input and output features of a layer's products, fused where they share their input: q, k, v; o; gate, up; down."""

ZERO = 128


def profile(prompt: bool) -> tuple[Counter[str], Counter[str], float]:
    """Milliseconds and calls by operator, and the wall time in milliseconds, each per call of the network."""
    with tempfile.TemporaryDirectory() as folder:

        def profiled() -> ort.SessionOptions:
            options = shared_options()
            options.enable_profiling = True
            options.profile_file_prefix = f"{folder}/profile"
            return options

        original, fused_files.shared_options = fused_files.shared_options, profiled
        try:
            model = load_model(BUNDLE, "fast-prompts" if prompt else "fast")
        finally:
            fused_files.shared_options = original
        ids = [int(i) for i in np.random.default_rng(0).integers(1000, 40000, COUNT)]
        calls = 1 if prompt else COUNT
        start = time.perf_counter()
        if prompt:
            model.prefill(ids)
        else:
            for token in ids:
                model.decode(token)
        wall = 1000 * (time.perf_counter() - start) / calls
        del model  # closing the sessions writes their profiles
        events = [event for file in Path(folder).iterdir() for event in json.loads(file.read_text())]
    spent: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"] / 1000 / calls
            count[event["args"]["op_name"]] += 1
    return spent, Counter({name: number // calls for name, number in count.items()}), wall


def report_profile(prompt: bool) -> None:
    spent, count, wall = profile(prompt)
    print(f"{f'Prompt of {COUNT} tokens' if prompt else 'One generated token'}: {wall:.2f} ms")
    rows: list[tuple[object, ...]] = [(name, count[name], spent[name]) for name, _ in spent.most_common(8)]
    table(("operator", "calls", "ms"), [*rows, ("all", sum(count.values()), sum(spent.values()))])


class Products:
    """All products of the model with one operator. Inputs have the shape [1, tokens, input features]."""

    def __init__(self, operator: str, tokens: int) -> None:
        self._random = np.random.default_rng(0)
        self._operator, self._parts = operator, FusedGraphBuilder()
        self._parts.add_constant("zero", np.uint8(ZERO))
        integer = operator in ("MatMulInteger", "MatMulIntegerToFloat")
        kind = TensorProto.UINT8 if integer else TensorProto.FLOAT
        widths = sorted({rows for rows, _ in SHAPES})
        inputs = [helper.make_tensor_value_info(f"x{width}", kind, [1, tokens, width]) for width in widths]
        self._parts.graph.input.extend(inputs)
        out = TensorProto.INT32 if operator == "MatMulInteger" else TensorProto.FLOAT
        for layer in range(LAYERS):
            for rows, columns in SHAPES:
                name = f"{layer}/{rows}x{columns}"
                self._add(name, rows, columns)
                self._parts.graph.output.append(helper.make_tensor_value_info(name, out, None))
        self._session = self._parts.load(shared_options())
        self._feeds = {f"x{width}": self._input((1, tokens, width), integer) for width in widths}

    def run(self) -> float:
        """Run all products; return the time in milliseconds."""
        start = time.perf_counter()
        self._session.run(None, self._feeds)
        return 1000 * (time.perf_counter() - start)

    def _input(self, shape: tuple[int, ...], integer: bool) -> np.ndarray[Any, Any]:
        values = self._random.standard_normal(shape)
        return np.clip(40 * values + ZERO, 0, 255).astype(np.uint8) if integer else values.astype(np.float32)

    def _add(self, name: str, rows: int, columns: int) -> None:
        parts, given = self._parts, f"x{rows}"
        codes = self._random.integers(-127, 128, (rows, columns), np.int8)
        scales = np.full((1, columns), 0.01, np.float32)
        if self._operator in KERNELS:
            KERNELS[self._operator].add(parts, MatMul(given, name, codes, scales))
        elif self._operator == "MatMul":
            weight = parts.add_weight(f"{name}/w", codes.astype(np.float32), TensorProto.FLOAT)
            parts.add_node("MatMul", [given, weight], [name])
        else:
            weight = parts.add_weight(f"{name}/w", codes, TensorProto.INT8)
            self._add_integer(name, given, weight, scales[0])

    def _add_integer(self, name: str, given: str, weight: str, scales: np.ndarray[Any, Any]) -> None:
        parts = self._parts
        if self._operator == "MatMulInteger":
            parts.add_node(self._operator, [given, weight, "zero"], [name])
            return
        scale = parts.add_weight(f"{name}/s", scales, TensorProto.FLOAT)
        one = parts.add_constant("one", np.float32(1))
        steps = [one, scale, "zero"] if self._operator == "MatMulIntegerToFloat" else [scale]
        parts.add_node(self._operator, [given, weight, *steps], [name], "com.microsoft")


KERNELS = {"MatMulNBits": EIGHT_BIT, "16-bit activations": SIXTEEN_BIT}

OPERATORS: Mapping[str, str] = {
    "MatMulNBits": "fast; int8 activations in blocks of 32",
    "16-bit activations": "prefill of fast-prompts; one scale per row",
    "DynamicQuantizeMatMul": "uint8 activations, one scale for all tokens",
    "MatMulIntegerToFloat": "uint8 inputs, scales per column",
    "MatMulInteger": "uint8 inputs, int32 outputs",
    "MatMul": "fp32",
}


def report_products(rounds: int) -> None:
    rows = []
    for tokens in (1, 4, 8, COUNT):
        products = {operator: Products(operator, tokens) for operator in OPERATORS}
        times: dict[str, list[float]] = {operator: [] for operator in OPERATORS}
        for _ in range(rounds):
            for operator, product in products.items():
                times[operator].append(product.run())
        base = median(times["MatMulNBits"])
        for operator, description in OPERATORS.items():
            shortest, middle = min(times[operator]), median(times[operator])
            rows.append((tokens, operator, description, f"{shortest:.1f}", f"{middle:.1f} ({middle / base:.2f})"))
    table(("tokens", "operator", "", "shortest, ms", "median, ms"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, metavar="N")
    args = parser.parse_args()
    report_profile(prompt=True)
    report_profile(prompt=False)
    report_products(args.rounds)


if __name__ == "__main__":
    main()
