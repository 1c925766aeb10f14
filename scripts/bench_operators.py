"""Where fast mode's time goes, and what the same products take by other operators.

    python scripts/bench_operators.py [--rounds N]

Needs `make demo` to have run. The first tables are ONNX Runtime's profile of a 128-token prompt and of 128 answered
tokens, by operator; the profiler itself takes time. The last multiplies one token, and 128, with weights as large as
all of a layer's, for each layer, by every operator that ONNX Runtime has for int8 weights, and in fp32; by turns.
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
import onnx
import onnxruntime as ort
from bench import table
from bench_speed import BUNDLE, COUNT
from onnx import TensorProto, helper, numpy_helper

from axzoo.engine import shared_options
from axzoo.runtime import fused_network
from axzoo.runtime.model import load_model

LAYERS = 30
SHAPES = ((576, 960), (576, 576), (576, 3072), (1536, 576))
"""In and out features of a layer's products, those of one input together: q, k and v; o; gate and up; down."""

BLOCK, ZERO = 32, 128


def profile(prompt: bool) -> tuple[Counter[str], Counter[str], float]:
    """Milliseconds and calls by operator, and the wall time in ms, each for one call of the network."""
    with tempfile.TemporaryDirectory() as folder:

        def profiled() -> ort.SessionOptions:
            options = shared_options()
            options.enable_profiling = True
            options.profile_file_prefix = f"{folder}/profile"
            return options

        usual, fused_network.shared_options = fused_network.shared_options, profiled
        try:
            model = load_model(BUNDLE, "fast")
        finally:
            fused_network.shared_options = usual
        ids = [int(i) for i in np.random.default_rng(0).integers(1000, 40000, COUNT)]
        calls = 1 if prompt else COUNT
        start = time.perf_counter()
        if prompt:
            model.prefill(ids)
        else:
            for token in ids:
                model.decode(token)
        wall = 1000 * (time.perf_counter() - start) / calls
        del model  # writes the profile
        (file,) = Path(folder).iterdir()
        events = json.loads(file.read_text())
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
        self._operator, self._constants = operator, [numpy_helper.from_array(np.uint8(ZERO), "zero")]
        nodes = [self._product(f"{layer}/{i}", *shape) for layer in range(LAYERS) for i, shape in enumerate(SHAPES)]
        integer = operator in ("MatMulInteger", "MatMulIntegerToFloat")
        kind = TensorProto.UINT8 if integer else TensorProto.FLOAT
        widths = sorted({rows for rows, _ in SHAPES})
        inputs = [helper.make_tensor_value_info(f"x{width}", kind, [tokens, width]) for width in widths]
        out = TensorProto.INT32 if operator == "MatMulInteger" else TensorProto.FLOAT
        outputs = [helper.make_tensor_value_info(node.output[0], out, None) for node in nodes]
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        graph = helper.make_graph(nodes, "products", inputs, outputs, self._constants)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        self._session = ort.InferenceSession(model.SerializeToString(), shared_options())
        self._feeds = {f"x{width}": self._input((tokens, width), integer) for width in widths}

    def run(self) -> float:
        """Milliseconds."""
        start = time.perf_counter()
        self._session.run(None, self._feeds)
        return 1000 * (time.perf_counter() - start)

    def _input(self, shape: tuple[int, int], integer: bool) -> np.ndarray[Any, Any]:
        values = self._random.standard_normal(shape)
        return np.clip(40 * values + ZERO, 0, 255).astype(np.uint8) if integer else values.astype(np.float32)

    def _constant(self, name: str, array: np.ndarray[Any, Any]) -> str:
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def _product(self, name: str, rows: int, columns: int) -> onnx.NodeProto:
        codes = self._random.integers(-127, 128, (rows, columns), np.int8)
        if self._operator == "MatMul":
            weight = self._constant(f"{name}/w", codes.astype(np.float32))
            return helper.make_node("MatMul", [f"x{rows}", weight], [name])
        if self._operator == "MatMulNBits":
            packed = (codes.T.astype(np.int16) + ZERO).astype(np.uint8).reshape(columns, -1, BLOCK)
            scales = np.full(packed.shape[:2], 0.01, np.float32)
            inputs = [f"x{rows}", self._constant(f"{name}/w", packed), self._constant(f"{name}/s", scales)]
            shape = {"K": rows, "N": columns, "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
            return helper.make_node(self._operator, inputs, [name], domain="com.microsoft", **shape)
        weight = self._constant(f"{name}/w", codes)
        if self._operator == "MatMulInteger":
            return helper.make_node(self._operator, [f"x{rows}", weight, "zero"], [name])
        scales = self._constant(f"{name}/s", np.full(columns, 0.01, np.float32))
        inputs = [f"x{rows}", weight, scales]
        if self._operator == "MatMulIntegerToFloat":
            one = self._constant(f"{name}/one", np.float32(1))
            inputs = [f"x{rows}", weight, one, scales, "zero"]
        return helper.make_node(self._operator, inputs, [name], domain="com.microsoft")


OPERATORS: Mapping[str, str] = {
    "MatMulNBits": "fast mode's; activations in int8 by blocks of 32",
    "DynamicQuantizeMatMul": "activations in uint8, one scale for all tokens",
    "MatMulIntegerToFloat": "given uint8 activations; scales by columns",
    "MatMulInteger": "given uint8 activations; sums as they are",
    "MatMul": "fp32",
}


def report_products(rounds: int) -> None:
    rows = []
    for tokens in (1, COUNT):
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
