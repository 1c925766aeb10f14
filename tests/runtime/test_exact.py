"""Exact mode against ONNX Runtime on the same file, which holds all weights in fp32: equal numbers, a fraction of the
memory."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from axzoo.backends.host.compiler import compile_layer
from axzoo.core.dtypes import NUMPY_DTYPES, ONNX_DTYPES
from axzoo.model.spec import LayerSpec, NormSpec, RopeSpec
from axzoo.runtime.engine import InferenceSession
from axzoo.runtime.exact import products as module
from axzoo.runtime.exact.products import multiply
from axzoo.runtime.exact.stages import Matrix, divide
from axzoo.runtime.threads import session_options
from axzoo.weights.recipe import Recipe
from tiny_model import EXACT, Built

FORMATS = [
    *({"weight_type": kind, "post_weight_type": post} for kind, post in (("fp32", "fp32"), ("bf16", "bf16"),
       ("s8", "s8"), ("s4", "fp8_e4m3"), ("fp32", "fp8_e5m2"))),
    {"weight_type": "fp16", "hidden_state_type": "fp16"},
    {"weight_type": "s8", "weight_group_size": 16},
    {"weight_type": "s4", "weight_group_size": 16},
]  # fmt: skip


def _as_onnx_runtime_does(path: Path, feed: dict[str, NDArray]) -> NDArray:
    """The first output of the whole graph, with weights dequantized when it is loaded."""
    options = session_options(1)
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in feed.items():
        number = ONNX_DTYPES[next(key for key, dtype in NUMPY_DTYPES.items() if dtype == array.dtype)]
        binding.bind_input(name, "cpu", 0, number, array.shape, array.ctypes.data)
    binding.bind_output("output", "cpu")
    session.run_with_iobinding(binding)
    return binding.get_outputs()[0].numpy()


@pytest.mark.parametrize("fields", FORMATS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_every_format_gives_the_numbers_of_onnx_runtime(
    build_tiny: Callable[[Recipe], Built], fields: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tiles of a few rows, so that every product is divided."""
    monkeypatch.setattr(module, "_TILE", 100)
    built = build_tiny(replace(EXACT, **fields))  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    for path in (built.layers[0], built.post):
        session = InferenceSession(path)
        for group in (0, session.num_shape_groups - 1):
            feed = {n.name: rng.standard_normal(n.shape).astype(n.dtype) for n in session.get_inputs(group)}
            feed |= {"indices": np.arange(feed["input"].shape[1], dtype=np.uint32)[None]} if "indices" in feed else {}
            (found,) = session.run(["output"], feed, shape_group=group)
            wanted = _as_onnx_runtime_does(path, feed).astype(np.float32)
            step = 2e-3 if found.dtype == np.float16 else 1e-5
            assert_allclose(found.astype(np.float32), wanted, atol=step * float(np.abs(wanted).max()))


SHAPES = [(96, 40), (97, 41), (1, 1), (2, 3)]
STORED = ["fp32", "fp16", "bf16", "int8", "int4", "fp8_e4m3", "fp8_e5m2"]


@pytest.mark.parametrize(("shape", "dtype"), list(itertools.product(SHAPES, STORED)))
@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_products_of_any_size_and_alignment(
    shape: tuple[int, int], dtype: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TILE", 90)
    rng = np.random.default_rng(1)
    rows, columns = shape
    integer = dtype.startswith("int")
    values = rng.integers(-8, 8, shape) if integer else rng.standard_normal(shape)
    values = values.astype(NUMPY_DTYPES[dtype]).astype(np.float32)
    if dtype == "int4":
        codes = np.append(values.astype(np.int8).reshape(-1), np.zeros(values.size % 2, np.int8)).view(np.uint8)
        stored = codes[::2] & 15 | codes[1::2] << 4
    else:
        stored = np.frombuffer(values.astype(NUMPY_DTYPES[dtype]).tobytes(), np.uint8)
    x = rng.standard_normal((tokens, rows)).astype(np.float32)
    for offset, groups in itertools.product((0, 1, 3), (1, 12) if rows == 96 else (1,)):
        shifted = np.frombuffer(bytes(offset) + stored.tobytes(), np.uint8)[offset:]
        scales = rng.random((groups, columns), np.float32) if not dtype.startswith(("fp32", "fp16", "bf16")) else None
        weights = values if scales is None else values * np.repeat(scales, rows // groups, axis=0)
        found = multiply(x, Matrix(ONNX_DTYPES[dtype], shape, shifted, scales))
        assert_allclose(found, x.astype(np.float64) @ weights.astype(np.float64), atol=2e-4, rtol=1e-5)


def test_the_stages_of_a_layer_hold_no_weights(s8: Built) -> None:
    content = s8.layers[0].read_bytes()
    stages = divide(memoryview(content))
    assert [len(stage.products) for stage in stages] == [3, 1, 2, 1, 0]
    weights = sum(product.matrix.values.nbytes for stage in stages for product in stage.products)
    assert sum(len(stage.model) for stage in stages) < len(content) - weights


def _changed(content: bytes, change: Callable[[onnx.ModelProto], None]) -> memoryview:
    model = onnx.load_model_from_string(content)
    change(model)
    return memoryview(model.SerializeToString())


def test_a_matrix_without_its_bytes_or_with_another_layout_is_refused(s8: Built) -> None:
    """Products read the bytes of a matrix without bounds, and know the layouts that axzoo writes."""
    content = s8.layers[0].read_bytes()

    def weight(model: onnx.ModelProto) -> onnx.TensorProto:
        return next(tensor for tensor in model.graph.initializer if tensor.name == "q_proj.weight")

    def split(model: onnx.ModelProto) -> None:
        """As many bytes in total, so that the sizes in the file's outline match."""
        tensor = weight(model)
        tensor.raw_data, tensor.int32_data[:] = tensor.raw_data[:-4], [1, 1, 1, 1]

    def fewer_scales(model: onnx.ModelProto) -> None:
        scale = next(tensor for tensor in model.graph.initializer if tensor.name == "q_proj.scale")
        scale.raw_data = scale.raw_data[:-4]

    def other_axis(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
        node.attribute[0].i = 0

    for change in (split, fewer_scales, other_axis):
        with pytest.raises(ValueError, match=r"bytes of its shape|cannot reshape|attributes"):
            divide(_changed(content, change))
    assert divide(_changed(content, lambda _model: None))


MEASURE = """
import sys
import numpy as np
from axzoo.runtime.engine import InferenceSession
from axzoo.runtime.exact import stages
from axzoo.core.dtypes import ONNX_DTYPES

def resident():
    return 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(sys.argv[3])))

if sys.argv[2] == "fp32":  # the planted fault
    usual = stages._matrix
    def in_fp32(view, scales):
        matrix = usual(view, scales)
        numbers = matrix.values.view(np.int8).reshape(matrix.shape) * matrix.scales
        return stages.Matrix(ONNX_DTYPES["fp32"], matrix.shape, numbers.reshape(-1).view(np.uint8), None)
    stages._matrix = in_fp32
before = resident()
session = InferenceSession(sys.argv[1])
feed = {n.name: np.zeros(n.shape, n.dtype) for n in session.get_inputs(0)}
session.run(None, feed)
session.run(None, feed)
print(resident() - before)
"""


@pytest.fixture(scope="module")
def large_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer of 38 million weights in s8."""
    hidden, inner, heads = 1536, 6144, 12
    spec = LayerSpec(hidden, inner, heads, heads, 128, NormSpec("rms_norm", 1e-5), RopeSpec(1e4, 128), 64)
    attention = {f"{role}_proj.weight": (hidden, hidden) for role in "qkvo"}
    wide = {f"{role}_proj.weight": (inner, hidden) for role in ("gate", "up")}
    norms = {"input_norm.weight": (hidden,), "mlp_norm.weight": (hidden,)}
    shapes = {**attention, **wide, "down_proj.weight": (hidden, inner), **norms}
    row = np.random.default_rng(0).standard_normal(inner).astype(ml_dtypes.bfloat16)

    def read(role: str) -> list[NDArray]:
        shape = shapes[role]
        return [np.broadcast_to(row[: shape[-1]], shape)] if len(shape) == 2 else [row[:hidden]]

    path = tmp_path_factory.mktemp("large") / "llama_p0_l0_together.axmodel"
    with path.open("wb") as file:
        file.writelines(compile_layer(spec, Recipe(prefill_len=0, kv_cache_len=31), shapes, read).pieces)
    return path


@pytest.mark.parametrize(("weights", "fits"), [("stored", True), ("fp32", False)])
def test_exact_mode_takes_no_more_memory_than_the_file_has_bytes(large_layer: Path, weights: str, fits: bool) -> None:
    """Plus what ONNX Runtime and the tiles of a product take; a copy of the weights in fp32 is found."""
    command = [sys.executable, "-c", MEASURE, str(large_layer), weights, "VmHWM" if fits else "VmRSS"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}  # each thread has a tile of its own
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 1.3 * large_layer.stat().st_size + (32 << 20)) == fits


DEEP = """
import sys
import numpy as np
from pathlib import Path
from axzoo.backends.host.vision_graph import compile_vision
from axzoo.model.spec import VisionSpec
from axzoo.model.vision_positions import position_ids, resampler_tensors, tower_tensors
from axzoo.runtime.engine import InferenceSession
from axzoo.weights.recipe import Recipe

blocks, path, private = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] == ["private"]
if private:  # the planted fault: every stage has memory of its own
    from axzoo.runtime.exact import products
    products._share_memory = lambda: False
spec = VisionSpec(14, 64, 128, blocks, 4, 8, 64, 4, 1)
refs = tower_tensors(spec) | resampler_tensors(spec)
shapes = {role: (ref.rows[1] - ref.rows[0], *ref.shape[1:]) if ref.rows else ref.shape for role, ref in refs.items()}
read = lambda role: [np.full(shapes[role], 0.01, np.float32)]
made = compile_vision("vision", spec, ("tower", "resampler"), Recipe(image_size=448), shapes, read)
path.write_bytes(b"".join(made.pieces))
del made
def resident():
    return 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon")))
before = resident()
session = InferenceSession(path)
feed = {"input": np.zeros((1, 448, 448, 3), np.uint8), "pos_embed_ids": position_ids(32, 32)}
session.run(None, feed)
session.run(None, feed)
print(resident() - before)
"""


@pytest.mark.parametrize(("planted", "shared"), [((), True), (("private",), False)])
def test_the_memory_of_a_vision_model_does_not_grow_with_its_depth(
    planted: tuple[str, ...], shared: bool, tmp_path: Path
) -> None:
    """A block's attention takes 16 MB for each of its values; ten more blocks take less than three more of them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def taken(blocks: int) -> int:
        command = [sys.executable, "-c", DEEP, str(blocks), str(tmp_path / "vision.axmodel"), *planted]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert (taken(12) - taken(2) < (48 << 20)) == shared
