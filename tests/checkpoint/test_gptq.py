"""GPTQ compared with a packer and a dequantizer that follow the format's definition one integer at a time."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from safetensors.numpy import load_file, save_file

from axzoo.checkpoint import gptq, open_checkpoint, tensors
from axzoo.checkpoint.gptq import GptqCheckpoint, gptq_config
from axzoo.checkpoint.tensors import Array, TensorInfo, row_blocks
from axzoo.core.errors import AxzooError
from axzoo.model.spec import TensorRef
from axzoo.parts.lock import digest_rows, make_lock
from tiny_model import LAYERS, Checkpoint

USUAL: dict[str, Any] = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 16,
    "desc_act": False,
    "sym": False,
    "checkpoint_format": "gptq",
}


@dataclass(frozen=True)
class Layer:
    """A quantized matrix as lists: codes [inputs][outputs], zeros and scales [groups][outputs], group [inputs]."""

    bits: int
    codes: list[list[int]]
    zeros: list[list[int]]
    scales: list[list[float]]
    group: list[int]

    def weight(self) -> Array:
        """[outputs, inputs], computed one number at a time."""
        return np.array(
            [
                [
                    (self.codes[k][n] - self.zeros[g][n]) * self.scales[g][n]  # exact: 9 bits times fp16's 11
                    for k, g in enumerate(self.group)
                ]
                for n in range(len(self.codes[0]))
            ],
            np.float32,
        )

    def stored(self, less_one: bool) -> dict[str, Array]:
        per = 32 // self.bits
        columns = range(len(self.codes[0]))
        words = range(0, len(self.codes), per)
        qweight = [[self._word([self.codes[k + j][n] for j in range(per)]) for n in columns] for k in words]
        starts = range(0, len(columns), per)
        borrow = self._word([1] * per) if less_one else 0
        qzeros = [[(self._word(zeros[n : n + per]) - borrow) % 2**32 for n in starts] for zeros in self.zeros]
        return {
            "qweight": np.array(qweight, np.uint32).view(np.int32),
            "qzeros": np.array(qzeros, np.uint32).view(np.int32),
            "scales": np.array(self.scales, np.float16),
            "g_idx": np.array(self.group, np.int32),
        }

    def _word(self, fields: list[int]) -> int:
        return sum(field << (self.bits * place) for place, field in enumerate(fields))


def make_layer(bits: int, inputs: int, outputs: int, group_size: int, sym: bool, act_order: bool, seed: int) -> Layer:
    """Random integers over the whole range; random zero points unless `sym`."""
    numbers, size = random.Random(seed), inputs if group_size == -1 else group_size
    groups, most = -(-inputs // size), (1 << bits) - 1
    group = [k // size for k in range(inputs)]
    if act_order:
        numbers.shuffle(group)
    return Layer(
        bits,
        [[numbers.randint(0, most) for _ in range(outputs)] for _ in range(inputs)],
        [[(most + 1) // 2 if sym else numbers.randint(0, most) for _ in range(outputs)] for _ in range(groups)],
        [[float(np.float16(numbers.uniform(0.001, 0.1))) for _ in range(outputs)] for _ in range(groups)],
        group,
    )


class InMemory:
    """A checkpoint of arrays in memory."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        names = {"float16": "F16", "float32": "F32", "int32": "I32", "bfloat16": "BF16", "int64": "I64"}
        self._arrays = arrays
        self.tensors = {
            name: TensorInfo(name, "memory", names[str(array.dtype)], array.shape) for name, array in arrays.items()
        }

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        rows: Array = self._arrays[name][start:stop]
        return rows


def opened(folder: Path, stored: dict[str, Array], **config: Any) -> GptqCheckpoint:
    (folder / "config.json").write_text(json.dumps({"quantization_config": USUAL | config}))
    quantization = gptq_config(folder)
    assert quantization is not None
    return GptqCheckpoint(InMemory(stored), quantization)


def under(prefix: str, parts: dict[str, Array]) -> dict[str, Array]:
    return {f"{prefix}.{part}": array for part, array in parts.items()}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [-1, 8, 16, 48, 128])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
def test_weights(tmp_path: Path, bits: int, group_size: int, sym: bool, act_order: bool, layout: str) -> None:
    layer = make_layer(bits, 48, 24, group_size, sym, act_order, seed=bits + group_size)
    stored = under("x.q_proj", layer.stored(layout == "gptq"))
    quantization = {
        "bits": bits,
        "group_size": group_size,
        "sym": sym,
        "desc_act": act_order,
        "checkpoint_format": layout,
    }
    checkpoint = opened(tmp_path, stored, **quantization)
    assert checkpoint.tensors == {"x.q_proj.weight": TensorInfo("x.q_proj.weight", "memory", "F32", (24, 48))}
    rows = checkpoint.read_rows("x.q_proj.weight", 0, 24)
    assert rows.dtype == np.float32
    assert_array_equal(rows, layer.weight())
    if not act_order:
        del stored["x.q_proj.g_idx"]  # older files have none
        assert_array_equal(opened(tmp_path, stored, **quantization).read_rows("x.q_proj.weight", 0, 24), layer.weight())


def test_the_order_of_the_fields_is_the_published_one(tmp_path: Path) -> None:
    """Eight inputs, one word per output, packed by hand; zero points 1 to 8 are stored as 0 to 7."""
    stored = {
        "x.qweight": np.array([[0x76543210] * 8], np.int32),
        "x.qzeros": np.array([[0x76543210]], np.int32),
        "x.scales": np.full((1, 8), 0.5, np.float16),
        "x.g_idx": np.zeros(8, np.int32),
    }
    rows = opened(tmp_path, stored, group_size=-1).read_rows("x.weight", 0, 8)
    assert_array_equal(rows, [[(k - (n + 1)) / 2 for k in range(8)] for n in range(8)])


@settings(deadline=None)
@given(
    start=st.integers(0, 24),
    stop=st.integers(0, 24),
    bits=st.sampled_from([4, 8]),
    seed=st.integers(0, 9),
    piece=st.integers(1, 4000),
    act_order=st.booleans(),
    group_size=st.sampled_from([4, 8, 12, 16, 20, 48]),
)
def test_any_range_of_rows_in_any_pieces(
    tmp_path_factory: pytest.TempPathFactory,
    start: int,
    stop: int,
    bits: int,
    seed: int,
    piece: int,
    act_order: bool,
    group_size: int,
) -> None:
    layer = make_layer(bits, 48, 24, group_size, sym=False, act_order=act_order, seed=seed)
    stored, folder = under("x", layer.stored(less_one=True)), tmp_path_factory.mktemp("rows")
    checkpoint = opened(folder, stored, bits=bits, desc_act=act_order, group_size=group_size)
    start, stop = sorted((start, stop))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gptq, "_CHUNK_BYTES", piece)
        assert_array_equal(checkpoint.read_rows("x.weight", start, stop), layer.weight()[start:stop])


class Counting(InMemory):
    """Counts the rows that are read of each tensor."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        super().__init__(arrays)
        self.read: Counter[str] = Counter()

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        self.read[name] += stop - start
        return super().read_rows(name, start, stop)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_matrix_is_read_once_for_all_of_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Also if several threads read different matrices of one checkpoint, as the lock does."""
    names = "xyz"[:threads]
    layers = {name: make_layer(4, 48, 24, 16, sym=False, act_order=True, seed=ord(name)) for name in names}
    arrays: dict[str, Array] = {}
    for name, layer in layers.items():
        arrays |= under(name, layer.stored(less_one=True))
    stored = Counting(arrays)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": USUAL | {"desc_act": True}}))
    config = gptq_config(tmp_path)
    assert config is not None
    checkpoint = GptqCheckpoint(stored, config)
    monkeypatch.setattr(tensors, "BLOCK_BYTES", 500)
    barrier = threading.Barrier(threads)

    def read(name: str) -> Array:
        blocks = []
        for block in row_blocks(checkpoint, f"{name}.weight", 0, 24):
            blocks.append(block)
            with suppress(threading.BrokenBarrierError):
                barrier.wait(5)  # all threads read their blocks in turn
        return np.concatenate(blocks)

    with ThreadPoolExecutor(threads) as pool:
        for name, values in zip(names, pool.map(read, names), strict=True):
            assert_array_equal(values, layers[name].weight())
    assert stored.read == {name: len(values) for name, values in arrays.items()}


def test_the_digest_does_not_depend_on_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer(4, 48, 24, 16, sym=False, act_order=True, seed=1)
    checkpoint = opened(tmp_path, under("x", layer.stored(less_one=True)), desc_act=True)
    plain = digest_rows(tmp_path, InMemory({"x.weight": layer.weight()}), TensorRef("x.weight", (24, 48)))
    for block_bytes in (1, 500, 1 << 20):
        monkeypatch.setattr(tensors, "BLOCK_BYTES", block_bytes)
        assert digest_rows(tmp_path, checkpoint, TensorRef("x.weight", (24, 48))) == plain
    assert all(block.flags.c_contiguous for block in row_blocks(checkpoint, "x.weight", 0, 24))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_scales_of_another_dtype(tmp_path: Path, dtype: Any) -> None:
    layer = make_layer(4, 16, 8, 16, sym=True, act_order=False, seed=0)
    stored = under("x", layer.stored(less_one=True))
    stored["x.scales"] = np.full((1, 8), 0.25, dtype)
    codes = np.array(layer.codes).T
    assert_array_equal(opened(tmp_path, stored).read_rows("x.weight", 0, 8), (codes - 8) * 0.25)


def test_unpacked_tensors_are_unchanged(tmp_path: Path) -> None:
    packed = under("x", make_layer(4, 16, 8, 16, sym=True, act_order=False, seed=0).stored(less_one=True))
    others = {"x.bias": np.ones(8, np.float16), "y.weight": np.ones((2, 2), np.float16), "z.scales": np.ones(2)}
    others["z.scales"] = others["z.scales"].astype(np.float32)
    checkpoint = opened(tmp_path, packed | others)
    assert set(checkpoint.tensors) == {"x.weight", *others}
    assert checkpoint.tensors["y.weight"] == TensorInfo("y.weight", "memory", "F16", (2, 2))
    assert checkpoint.read_rows("x.bias", 2, 4).dtype == np.float16


def test_a_scale_that_is_not_finite_is_detected(tmp_path: Path) -> None:
    stored = under("x", make_layer(4, 16, 8, 16, sym=True, act_order=False, seed=0).stored(less_one=True))
    stored["x.scales"][0, 3] = np.inf
    with pytest.raises(AxzooError, match=r"tensor x\.weight contains NaN or infinity"):
        digest_rows(tmp_path, opened(tmp_path, stored), TensorRef("x.weight", (8, 16)))


@pytest.mark.parametrize(("layout", "less_one"), [("gptq", False), ("gptq_v2", True)])
def test_symmetric_zero_points_reveal_the_wrong_format(tmp_path: Path, layout: str, less_one: bool) -> None:
    """Some tools declare "gptq" and write "gptq_v2"; every weight would be off by one step."""
    stored = under("x", make_layer(4, 16, 8, 16, sym=True, act_order=False, seed=0).stored(less_one))
    checkpoint = opened(tmp_path, stored, sym=True, checkpoint_format=layout)
    with pytest.raises(AxzooError, match=r"x\.qzeros has a zero point other than 8, but .*config\.json has sym"):
        checkpoint.read_rows("x.weight", 0, 8)


@pytest.mark.parametrize("group", [-1, 1, 1 << 20])
def test_a_group_that_does_not_exist(tmp_path: Path, group: int) -> None:
    stored = under("x", make_layer(4, 16, 8, 16, sym=True, act_order=False, seed=0).stored(less_one=True))
    stored["x.g_idx"][5] = group
    with pytest.raises(AxzooError, match=r"memory: tensor x\.g_idx has group indices outside 0 to 0"):
        opened(tmp_path, stored).read_rows("x.weight", 0, 8)


WRONG: dict[str, tuple[dict[str, Array | None], dict[str, Any], str]] = {
    "other bits": ({}, {"bits": 8}, r"x\.qzeros has shape .* follows from x\.qweight and from bits 8"),
    "other groups": ({}, {"group_size": 8}, r"x\.qzeros has shape \[1, 1\], but \[2, 1\] .* group_size 8"),
    "a vector": ({"x.qweight": np.zeros(16, np.int32)}, {}, r"x\.qweight has shape \[16\]"),
    "no outputs": ({"x.qweight": np.zeros((2, 0), np.int32)}, {}, r"x\.qweight has shape \[2, 0\]"),
    "short g_idx": ({"x.g_idx": np.zeros(15, np.int32)}, {}, r"x\.g_idx has shape \[15\], but \[16\]"),
    "long scales": ({"x.scales": np.ones((2, 8), np.float16)}, {}, r"x\.scales has shape \[2, 8\]"),
    "no scales": ({"x.scales": None}, {}, r"has no tensor x\.scales"),
    "no zero points": ({"x.qzeros": None}, {}, r"has no tensor x\.qzeros"),
    "act order without g_idx": ({"x.g_idx": None}, {"desc_act": True}, r"has no tensor x\.g_idx"),
    "words of 64 bits": ({"x.qweight": np.zeros((2, 8), np.int64)}, {}, r"x\.qweight has dtype I64"),
    "integer scales": (
        {"x.scales": np.ones((1, 8), np.int32)},
        {},
        r"x\.scales has dtype I32, but must have one of F32",
    ),
    "both": ({"x.weight": np.ones((8, 16), np.float32)}, {}, r"contains x\.weight both packed and unpacked"),
    "nothing packed": ({"x.qweight": None}, {}, r"declares gptq, but the checkpoint contains no packed tensor"),
}


@pytest.mark.parametrize(("changes", "quantization", "message"), WRONG.values(), ids=WRONG.keys())
def test_tensors_that_contradict_the_config(
    tmp_path: Path, changes: dict[str, Array | None], quantization: dict[str, Any], message: str
) -> None:
    stored = under("x", make_layer(4, 16, 8, 16, sym=True, act_order=False, seed=0).stored(less_one=True))
    left = {name: array for name, array in (stored | changes).items() if array is not None}
    with pytest.raises(AxzooError, match=message):
        opened(tmp_path, left, **quantization)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "awq"}, "quant_method 'awq' is not supported, only gptq"),
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes'"),
        ({"quant_method": "fp8"}, "quant_method 'fp8'"),
        ({"quant_method": None}, "quant_method None"),
        ({"bits": 3}, "bits of the quantization is 3, but must be 4 or 8"),
        ({"bits": 4.0}, "bits of the quantization is 4.0"),
        ({"bits": None}, "bits of the quantization is None"),
        ({"group_size": 0}, "group_size of the quantization is 0"),
        ({"group_size": -2}, "must be positive or -1"),
        ({"group_size": True}, "group_size"),
        ({"group_size": None}, "group_size"),
        ({"desc_act": 1}, "desc_act of the quantization is 1"),
        ({"sym": "yes"}, "sym of the quantization is 'yes'"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format of the quantization is 'marlin'"),
        ({"is_marlin_format": True}, "is_marlin_format"),
    ],
)
def test_unsupported_quantizations(tmp_path: Path, quantization: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": USUAL | quantization}))
    with pytest.raises(AxzooError, match=message) as error:
        open_checkpoint(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_where_the_quantization_is_declared(tmp_path: Path) -> None:
    assert gptq_config(tmp_path) is None
    own = {key: value for key, value in USUAL.items() if key != "quant_method"}
    (tmp_path / "quantize_config.json").write_text(json.dumps(own | {"bits": 8}))  # as AutoGPTQ writes it
    for config in ({}, {"quantization_config": None}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        found = gptq_config(tmp_path)
        assert found is not None
        assert (found.bits, found.path.name) == (8, "quantize_config.json")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": USUAL}))
    found = gptq_config(tmp_path)
    assert found is not None
    assert (found.bits, found.path.name) == (4, "config.json")
    for path, content in (("config.json", {"quantization_config": 4}), ("quantize_config.json", [4])):
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / path).write_text(json.dumps(content))
        with pytest.raises(AxzooError, match=f"{path}: its quantization is not a JSON object"):
            gptq_config(tmp_path)


def test_a_gptq_checkpoint_locks_like_the_dequantized_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plain = load_file(checkpoint.folder / "model.safetensors")
    packed = dict(plain)
    for seed, name in enumerate(sorted(plain)):
        if "proj" in name:
            outputs, inputs = plain[name].shape
            layer = make_layer(4, inputs, outputs, 16, sym=False, act_order=True, seed=seed)
            plain[name] = layer.weight()
            del packed[name]
            packed |= under(name.removesuffix(".weight"), layer.stored(less_one=True))
    config = json.loads((checkpoint.folder / "config.json").read_text())
    folders = {
        "plain": (plain, config),
        "packed": (packed, config | {"quantization_config": USUAL | {"desc_act": True}}),
    }
    locks = []
    for folder, (arrays, quantization) in folders.items():
        (tmp_path / folder).mkdir()
        save_file(arrays, tmp_path / folder / "model.safetensors")
        (tmp_path / folder / "config.json").write_text(json.dumps(quantization))
        locks.append(make_lock(tmp_path / folder, "llama", LAYERS, ["quantization_config"]))
    assert locks[0] == locks[1]
