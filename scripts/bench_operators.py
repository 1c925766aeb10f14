"""Where fast mode's time goes, and what the same products take by other operators.

    python scripts/bench_operators.py [--rounds N]

Needs `make demo` to have run. The first tables are ONNX Runtime's profile of a 128-token prompt and of 128 answered
tokens, by operator, each in its fastest mode; the profiler itself takes time. The last multiplies few tokens
and many with weights as large as all of a layer's, for each layer, by fast mode's two kernels, by every operator that
ONNX Runtime has for int8 weights, and in fp32; by turns.
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
"""In and out features of a layer's products, those of one input together: q, k and v; o; gate and up; down."""

ZERO = 128


def profile(prompt: bool) -> tuple[Counter[str], Counter[str], float]:
    """Milliseconds and calls by operator, and the wall time in ms, each for one call of the network."""
    with tempfile.TemporaryDirectory() as folder:

        def profiled() -> ort.SessionOptions:
            options = shared_options()
            options.enable_profiling = True
            options.profile_file_prefix = f"{folder}/profile"
            return options

        usual, fused_files.shared_options = fused_files.shared_options, profiled
        try:
            model = load_model(BUNDLE, "fast-prompts" if prompt else "fast")
        finally:
            fused_files.shared_options = usual
        ids = [int(i) for i in np.random.default_rng(0).integers(1000, 40000, COUNT)]
        calls = 1 if prompt else COUNT
        start = time.perf_counter()
        if prompt:
            model.prefill(ids)
        else:
            for token in ids:
                model.decode(token)
        wall = 1000 * (time.perf_counter() - start) / calls
        del model  # writes the profiles, one of a session
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
    print(f"{f'A prompt of {COUNT} tokens' if prompt else 'A token of an answer'}: {wall:.2f} ms")
    rows: list[tuple[object, ...]] = [(name, count[name], spent[name]) for name, _ in spent.most_common(8)]
    table(("operator", "calls", "ms"), [*rows, ("all", sum(count.values()), sum(spent.values()))])


class Products:
    """All products of the model, of inputs [tokens, in features], by one operator."""

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
        """Milliseconds."""
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


KERNELS = {"MatMulNBits": EIGHT_BIT, "16-bit": SIXTEEN_BIT}

OPERATORS: Mapping[str, str] = {
    "MatMulNBits": "fast mode's; activations in int8 by blocks of 32",
    "16-bit": "the prefill kernel of fast-prompts; one activation scale per row",
    "DynamicQuantizeMatMul": "activations in uint8, one scale for all tokens",
    "MatMulIntegerToFloat": "given uint8 activations; scales by columns",
    "MatMulInteger": "given uint8 activations; sums as they are",
    "MatMul": "fp32",
}


def report_products(rounds: int) -> None:
    rows = []
    for tokens in (1, 4, 8, COUNT):
        products = {operator: Products(operator, tokens) for operator in OPERATORS}
        times: dict[str, list[float]] = {operator: [] for operator in OPERATORS}
        for _ in range(rounds):
            for operator, of_all in products.items():
                times[operator].append(of_all.run())
        base = median(times["MatMulNBits"])
        for operator, said in OPERATORS.items():
            shortest, usual = min(times[operator]), median(times[operator])
            rows.append((tokens, operator, said, f"{shortest:.1f}", f"{usual:.1f} ({usual / base:.2f})"))
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
