"""Files of torch.save, single and sharded, valid and hostile."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from axzoo.checkpoint.local_files import find_weights
from axzoo.checkpoint.pickled import PickledCheckpoint
from axzoo.checkpoint.tensors import TensorInfo, row_blocks
from axzoo.core.errors import AxzooError
from axzoo.model.spec import TensorRef
from axzoo.parts.lock import digest_rows

SINGLE = "pytorch_model.bin"
A = torch.arange(20, dtype=torch.float32).reshape(4, 5)
B = torch.ones(2, 2, dtype=torch.float16)


class Runs:
    """An object whose pickle makes a plain unpickler call a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


def _sharded(folder: Path, weight_map: Any = None) -> Path:
    torch.save({"a": A}, folder / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": B}, folder / "pytorch_model-00002-of-00002.bin")
    placed = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    index = {"metadata": {}, "weight_map": placed if weight_map is None else weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def opened(folder: Path) -> PickledCheckpoint:
    return PickledCheckpoint(folder, find_weights(folder))


def _refused(folder: Path, message: str) -> None:
    with pytest.raises(AxzooError, match=message) as error:
        opened(folder)
    assert str(folder) in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("dtype", "name", "expected"),
    [
        (torch.float32, "F32", np.float32),
        (torch.float16, "F16", np.float16),
        (torch.bfloat16, "BF16", ml_dtypes.bfloat16),
        (torch.int32, "I32", np.int32),
    ],
)
def test_one_file(tmp_path: Path, dtype: torch.dtype, name: str, expected: Any) -> None:
    values = (torch.randn(6, 5) * 1000).to(dtype)
    torch.save(OrderedDict(w=values), tmp_path / SINGLE)
    checkpoint = opened(tmp_path)
    assert checkpoint.tensors == {"w": TensorInfo("w", SINGLE, name, (6, 5))}
    rows = checkpoint.read_rows("w", 2, 5)
    assert rows.dtype == expected
    assert_array_equal(rows.astype(np.float64), values[2:5].double().numpy())


def test_shards(tmp_path: Path) -> None:
    checkpoint = opened(_sharded(tmp_path))
    assert checkpoint.tensors["b"] == TensorInfo("b", "pytorch_model-00002-of-00002.bin", "F16", (2, 2))
    assert_array_equal(checkpoint.read_rows("a", 1, 3), A[1:3].numpy())
    assert_array_equal(checkpoint.read_rows("b", 1, 2), B[1:2].numpy())


def test_views_of_one_storage(tmp_path: Path) -> None:
    stored = {
        "whole": A,
        "same": A,
        "transposed": A.t(),
        "part": A[1:3, 1:4],
        "column": A[:, 2],
        "repeated": A[:1].expand(6, 5),
        "parameter": torch.nn.Parameter(A),
        "empty": torch.empty(0, 4),
        "bf16": A.bfloat16().t(),
    }
    torch.save(stored, tmp_path / SINGLE)
    checkpoint = opened(tmp_path)
    for name, value in stored.items():
        blocks = list(row_blocks(checkpoint, name, 0, len(value))) or [checkpoint.read_rows(name, 0, 0)]
        assert all(block.flags.c_contiguous for block in blocks)
        assert_array_equal(np.concatenate(blocks).astype(np.float32), value.detach().float().numpy())
    whole, same = (digest_rows(tmp_path, checkpoint, TensorRef(name, (6, 5))) for name in ("whole", "same"))
    assert whole.blake3 == same.blake3


def test_another_dtype_is_listed_and_refused_when_read(tmp_path: Path) -> None:
    torch.save({"mask": torch.ones(2, 2, dtype=torch.bool)}, tmp_path / SINGLE)
    with pytest.raises(AxzooError, match=r"tensor mask has dtype BOOL, but must have one of F32"):
        list(row_blocks(opened(tmp_path), "mask", 0, 2))


def test_opening_reads_no_values_and_a_row_only_itself(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(64, 1 << 18), "other": torch.zeros(64, 1 << 18)}, tmp_path / SINGLE)
    before = _resident()
    checkpoint = opened(tmp_path)
    rows = checkpoint.read_rows("w", 5, 7)
    assert _resident() - before < 32 << 20  # of 128 MiB
    assert_array_equal(rows, np.ones((2, 1 << 18), np.float32))


def _resident() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


@pytest.mark.parametrize("place", ["entry", "whole", "key", "nested"])
@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_that_would_run_code_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, old_format: bool
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    proof = tmp_path / "it ran"
    evil = Runs(os.mkdir, str(proof))
    content: dict[str, Any] = {
        "entry": {"a": A, "evil": evil},
        "whole": evil,
        "key": {evil: A},
        "nested": {"a": [{"b": (A, evil)}]},
    }
    torch.save(content[place], tmp_path / SINGLE, _use_new_zipfile_serialization=not old_format)
    _refused(tmp_path, "not in the zip format" if old_format else r"refers to \w+\.mkdir, .* no code was run")
    assert not proof.exists()
    if place != "key":  # a plain unpickler would have run it
        torch.load(tmp_path / SINGLE, weights_only=False)
        assert proof.exists()


@pytest.mark.parametrize("call", [Runs(eval, "1"), Runs(getattr, "x", "upper"), Runs(torch.hub.load, "a/b", "c")])
def test_other_callables_are_refused_too(tmp_path: Path, call: Runs) -> None:
    torch.save({"a": A, "b": call}, tmp_path / SINGLE)
    _refused(tmp_path, r"refers to [\w.]+, which is not a tensor; no code")


@pytest.mark.filterwarnings("ignore:.*TorchScript")
def test_a_torchscript_archive(tmp_path: Path) -> None:
    torch.save({"a": A}, tmp_path / SINGLE)
    with zipfile.ZipFile(tmp_path / SINGLE, "a") as archive:
        archive.writestr("pytorch_model/constants.pkl", pickle.dumps(()))
    _refused(tmp_path, "TorchScript")


@pytest.mark.parametrize(
    "value",
    [3, "text", None, [A], {"a": A}, A.to_sparse(), A.to("meta"), torch._neg_view(A)],
    ids=["int", "text", "None", "list", "state_dict", "sparse", "meta", "negated"],
)
def test_an_entry_that_is_not_a_dense_tensor(tmp_path: Path, value: Any) -> None:
    torch.save({"a": A, "odd": value}, tmp_path / SINGLE)
    _refused(tmp_path, "entry odd is not a dense tensor")


@pytest.mark.parametrize("content", [A, [A], 7])
def test_content_without_names(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / SINGLE)
    _refused(tmp_path, "not a dict of tensors")


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", 3, ("a",)])
def test_an_unprintable_name(tmp_path: Path, name: Any) -> None:
    torch.save({name: A}, tmp_path / SINGLE)
    _refused(tmp_path, "unprintable name")


@pytest.mark.parametrize("keep", [0, 3, 4, 30, 300, 700, -1, -22, -60])
def test_a_truncated_file(tmp_path: Path, keep: int) -> None:
    torch.save({"a": A}, tmp_path / SINGLE)
    (tmp_path / SINGLE).write_bytes((tmp_path / SINGLE).read_bytes()[:keep])
    _refused(tmp_path, "copy or download the file again")


@pytest.mark.parametrize(
    "content",
    [pickle.dumps({"a": 1}), b"<html>", b"PK\3\4" + bytes(100)],
    ids=["pickle", "page", "zip without entries"],
)
def test_files_that_are_not_torch_archives(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    _refused(tmp_path, "copy or download the file again")


def test_the_format_before_torch_1_6_is_refused_with_a_remedy(tmp_path: Path) -> None:
    torch.save({"a": A}, tmp_path / SINGLE, _use_new_zipfile_serialization=False)
    _refused(tmp_path, r"zip format that torch has written since version 1\.6.* convert an older file with")


def _rewritten(path: Path, change: Callable[[bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Rewrites the archive with a changed pickle."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, change(data) if name.endswith("/data.pkl") else data)


def test_a_compressed_archive(tmp_path: Path) -> None:
    torch.save({"a": A}, tmp_path / SINGLE)
    _rewritten(tmp_path / SINGLE, lambda data: data, zipfile.ZIP_DEFLATED)
    _refused(tmp_path, "is a compressed archive")


SIZE, SHAPE = b"K\x14", b"K\x04K\x05"  # 20 values, [4, 5]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (SHAPE, b"J\x00\x00\x00\x40K\x05"),  # 2**30 rows
        (SHAPE, b"K\x05K\x05"),  # one row more than stored
        (SHAPE, b"J\xff\xff\xff\xffK\x05"),  # -1 rows
        (SIZE, b"K\x13"),  # one value less than the shape needs
        (SIZE, b"J\xfb\xff\xff\xff"),  # -5 values
    ],
)
def test_a_pickle_with_a_forged_storage(tmp_path: Path, old: bytes, new: bytes) -> None:
    torch.save({"a": A}, tmp_path / SINGLE)
    _rewritten(tmp_path / SINGLE, lambda data: data.replace(old, new))
    _refused(tmp_path, r"is damaged \(.+\): copy or download the file again")


def test_a_storage_and_a_shape_beyond_the_end_of_the_file(tmp_path: Path) -> None:
    torch.save({"a": A}, tmp_path / SINGLE)
    huge = b"J\x00\x00\x00\x40"
    _rewritten(tmp_path / SINGLE, lambda data: data.replace(SIZE, huge).replace(SHAPE, b"J\x00\x00\x00\x0cK\x05"))
    _refused(tmp_path, "is damaged")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 400), value=st.binary(min_size=1, max_size=6))
def test_randomly_changed_pickles_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: bytes
) -> None:
    folder = tmp_path_factory.mktemp("forged")
    torch.save({"a": A, "half": B, "view": A.t()}, folder / SINGLE)
    _rewritten(folder / SINGLE, lambda data: data[:at] + value + data[at + len(value) :])
    try:
        checkpoint = opened(folder)
        for name in checkpoint.tensors:
            shape = checkpoint.tensors[name].shape
            if shape:
                list(row_blocks(checkpoint, name, 0, shape[0]))
    except AxzooError as error:
        assert SINGLE in str(error)


@pytest.mark.parametrize(
    "shard", ["../x.bin", "/etc/passwd", "sub/x.bin", "..", "", ".hidden", "a\0b", 7, None], ids=repr
)
def test_a_shard_must_be_in_the_folder_of_its_index(tmp_path: Path, shard: Any) -> None:
    folder = tmp_path / "checkpoint"
    (folder / "sub").mkdir(parents=True)
    for path in (tmp_path / "x.bin", folder / "sub" / "x.bin"):  # files that would do
        torch.save({"a": A}, path)
    _refused(_sharded(folder, {"a": shard}), "a shard must be the name of a file in the same folder")


def test_a_missing_shard(tmp_path: Path) -> None:
    (_sharded(tmp_path) / "pytorch_model-00002-of-00002.bin").unlink()
    _refused(tmp_path, r"00002-of-00002\.bin is missing, and pytorch_model\.bin\.index\.json places tensors there")


def test_shards_that_repeat_a_tensor_or_lack_one(tmp_path: Path) -> None:
    second = _sharded(tmp_path) / "pytorch_model-00002-of-00002.bin"
    for other in (A + 1, A[:1].clone(), A.half()):
        torch.save({"a": other}, second)
        _refused(tmp_path, r"00002-of-00002\.bin repeats tensor a, which is also in pytorch_model-00001.* other values")
    torch.save({"a": A}, second)
    torch.save({"c": A}, tmp_path / "pytorch_model-00002-of-00002.bin")
    _refused(tmp_path, "places 'b' in .*, but no shard contains it")
