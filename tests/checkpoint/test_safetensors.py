"""safetensors files, single and sharded, valid and hostile."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.tensors import TensorInfo
from axzoo.core.errors import AxzooError

A = np.arange(12, dtype=np.float32).reshape(4, 3)
B = np.ones((2, 2), np.float16)


def _sharded(folder: Path, weight_map: Any = None) -> Path:
    save_file({"a": A}, folder / "model-1.safetensors")
    save_file({"b": B}, folder / "model-2.safetensors")
    placed = {"a": "model-1.safetensors", "b": "model-2.safetensors"} if weight_map is None else weight_map
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


def _refused(folder: Path, message: str) -> None:
    with pytest.raises(AxzooError, match=message) as error:
        open_checkpoint(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_one_file(tmp_path: Path) -> None:
    half = torch.randn(3, 5).bfloat16()
    save_torch({"half": half, "a": torch.from_numpy(A)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tensors["half"] == TensorInfo("half", "model.safetensors", "BF16", (3, 5))
    rows = checkpoint.read_rows("half", 1, 3)
    assert rows.dtype == ml_dtypes.bfloat16
    assert_array_equal(rows.astype(np.float32), half[1:].float().numpy())
    assert_array_equal(checkpoint.read_rows("a", 0, 4), A)


def test_shards(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(_sharded(tmp_path))
    assert {name: info.file for name, info in checkpoint.tensors.items()} == {
        "a": "model-1.safetensors",
        "b": "model-2.safetensors",
    }
    assert_array_equal(checkpoint.read_rows("b", 1, 2), B[1:])


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "model.npz").write_bytes(b"")
    _refused(tmp_path, r"model\.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1, -20])
def test_a_truncated_file(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": A}, path)
    path.write_bytes(path.read_bytes()[:keep])
    _refused(tmp_path, r"model\.safetensors is damaged or incomplete .*: copy or download the file again")


def _file(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


LIES = {
    "more rows than bytes": _file(_entry(shape=(1 << 40,)), b"\0" * 8),
    "bytes beyond the end": _file(_entry(offsets=(0, 1 << 40), shape=(1 << 38,)), b"\0" * 8),
    "bytes before the start": _file(_entry(offsets=(-8, 0)), b"\0" * 8),
    "backwards": _file(_entry(offsets=(8, 0)), b"\0" * 8),
    "negative shape": _file(_entry(shape=(-2,)), b"\0" * 8),
    "a product that overflows": _file(_entry(shape=(1 << 33, 1 << 31, 2)), b"\0" * 8),
    "overlapping tensors": _file(_entry() | {"b": _entry()["a"]}, b"\0" * 8),
    "a hole": _file(_entry(offsets=(8, 16)), b"\0" * 16),
    "bytes nobody owns": _file(_entry(), b"\0" * 80),
    "unknown dtype": _file(_entry("F7"), b"\0" * 8),
    "no JSON": _file(b"{" * 50, b""),
    "a list": _file([], b""),
    "a header without end": struct.pack("<Q", 1 << 62) + b"{}",
    "a header of 200 MB": struct.pack("<Q", 200 << 20) + b"{}",
    "a pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES.keys())
def test_a_forged_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    _refused(tmp_path, "is damaged or incomplete")


def test_a_missing_shard(tmp_path: Path) -> None:
    (_sharded(tmp_path) / "model-2.safetensors").unlink()
    missing = r"model-2\.safetensors is missing, and model\.safetensors\.index\.json places tensors there"
    _refused(tmp_path, f"{missing}: copy or download the file again")


@pytest.mark.parametrize(
    "shard",
    [
        "../x.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
        ".",
        "",
        ".hidden",
        "a\0b",
        7,
        None,
        ["x"],
        {"x": 1},
    ],
    ids=repr,
)
def test_a_shard_must_be_in_the_folder_of_its_index(tmp_path: Path, shard: Any) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file({"a": A}, tmp_path / "x.safetensors")  # an outside file that would do
    (folder / "sub").mkdir()
    save_file({"a": A}, folder / "sub" / "x.safetensors")
    _refused(_sharded(folder, {"a": shard}), "a shard must be the name of a file in the same folder")


@pytest.mark.parametrize("weight_map", [{}, [], "x", 3, None])
def test_an_index_without_a_map(tmp_path: Path, weight_map: Any) -> None:
    _sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    _refused(tmp_path, "has no weight_map: copy or download the file again")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"weight_map": {"a": "model-1.safetensors"'])
def test_an_invalid_index(tmp_path: Path, text: str) -> None:
    (_sharded(tmp_path) / "model.safetensors.index.json").write_text(text)
    _refused(tmp_path, "is not valid JSON|has no weight_map")


def test_an_index_that_lists_a_tensor_no_shard_contains(tmp_path: Path) -> None:
    _refused(_sharded(tmp_path, {"c": "model-1.safetensors"}), "places 'c' in model-1.*, but no shard contains it")


def test_shards_that_repeat_a_tensor(tmp_path: Path) -> None:
    _sharded(tmp_path)
    for other in (A + 1, A[:1], A.astype(np.float16), np.array(1.0, A.dtype)):
        save_file({"a": other, "b": B}, tmp_path / "model-2.safetensors")
        _refused(tmp_path, r"model-2\.safetensors repeats tensor a, which is also in model-1\.safetensors, with other")


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_shards_that_repeat_a_tensor_with_the_same_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr("axzoo.checkpoint.safetensors.BLOCK_BYTES", block_bytes)
    save_file({"a": A, "b": B}, _sharded(tmp_path) / "model-2.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tensors["a"].file == "model-1.safetensors"
    np.testing.assert_array_equal(checkpoint.read_rows("a", 0, len(A)), A)
    last = A.copy()
    last[-1, -1] += 1
    save_file({"a": last, "b": B}, tmp_path / "model-2.safetensors")
    _refused(tmp_path, "with other values: remove the wrong file, or save the model again")


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "a\x07"])
def test_an_unprintable_name(tmp_path: Path, name: str) -> None:
    save_file({name: A}, tmp_path / "model.safetensors")
    _refused(tmp_path, "has a tensor with an unprintable name")
