"""Pickled weights are converted once, by the fetch: the later jobs read safetensors and need no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json
from axzoo.fetch import fetch
from axzoo.fetch.sources import FolderSource, checkpoint_folder, stamped_file
from axzoo.parts.lock import make_lock
from tiny_model import EXACT, LAYERS, Checkpoint

SINGLE = "pytorch_model.bin"


def pickled(checkpoint: Checkpoint, folder: Path) -> Path:
    """A copy of the checkpoint with pickled weights."""
    shutil.copytree(checkpoint.folder, folder, ignore=shutil.ignore_patterns("source.json"))
    torch.save(load_file(folder / "model.safetensors"), folder / SINGLE)
    (folder / "model.safetensors").unlink()
    return folder


def converted(folder: Path, output: Path, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    torch.save(tensors, folder / SINGLE)
    fetch(FolderSource(str(folder)), output)
    return load_file(output / "model.safetensors")


def test_the_converted_checkpoint_locks_like_the_original(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = pickled(checkpoint, tmp_path / "given")
    fetch(FolderSource(str(folder)), tmp_path / "output")
    receipt = read_json(tmp_path / "output/source.json")
    small = {path.name for path in folder.iterdir()} - {SINGLE}
    assert set(receipt["files"]) == {"model.safetensors", *small}
    assert all((tmp_path / "output" / name).read_bytes() == (folder / name).read_bytes() for name in small)
    assert set(receipt["converted_from"]["files"]) == {SINGLE, *small}
    assert receipt["converted_from"]["root"] == str(folder)
    assert receipt["converted_from"]["files"][SINGLE] == stamped_file(folder / SINGLE).to_dict()
    fetched = make_lock(checkpoint_folder(tmp_path / "output/source.json"), "llama", LAYERS)
    assert fetched == make_lock(checkpoint.folder, "llama", LAYERS)


def test_no_later_job_imports_torch(checkpoint: Checkpoint, tmp_path: Path) -> None:
    fetch(FolderSource(str(pickled(checkpoint, tmp_path / "given"))), tmp_path / "m")
    source, lock = f"--source={tmp_path}/m/source.json", tmp_path / "lock"
    jobs = [["lock", source, "--model_type=llama", f"--num_hidden_layers={LAYERS}", f"--output={lock}"]]
    for part in ("layer_0", "post", "embed"):
        output = [f"--output={tmp_path}/{part}.out", f"--receipt={tmp_path}/{part}.receipt"]
        recipe = f"--recipe={json.dumps(EXACT.to_dict())}"
        jobs.append(["compile", f"--lock={lock}/{part}.json", source, *output, f"--store={tmp_path}/store", recipe])
        jobs[-1] += ["--chip=AX650", "--backend=host"]
    code = "import json, sys; sys.modules['torch'] = None; from axzoo.cli import main\n"
    code += "sys.exit(any(main(words) for words in json.loads(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, json.dumps(jobs)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tensors_of_every_kind_keep_their_values(tmp_path: Path) -> None:
    base = torch.arange(20, dtype=torch.float32).reshape(4, 5)
    stored = {
        "whole": base,
        "tied": base,
        "transposed": base.t(),
        "column": base[:, 2],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "wide_and_empty": torch.empty(1 << 40, 0),
        "packed": torch.tensor([[1 << 30, -5]], dtype=torch.int32),
        "ids": torch.arange(3),
        "mask": torch.tensor([True, False]),
        "angles": torch.tensor([1 + 2j]),
    }
    stored |= {str(dtype): base.to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int8)}
    found = converted(tmp_path / "given", tmp_path / "output", **stored)
    assert found.keys() == stored.keys()
    for name, value in stored.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(1).expand(1 << 40, 2), r"the tensors have \d+\.\d MB, but the files only \d\.\d MB"),
        (torch.ones(3).to(torch.float8_e4m3fn), r"tensor w has dtype torch\.float8_e4m3fn, which axzoo cannot convert"),
    ],
    ids=["a view larger than the disk", "a dtype without a reader"],
)
def test_what_cannot_be_converted_is_refused(tmp_path: Path, value: torch.Tensor, message: str) -> None:
    with pytest.raises(AxzooError, match=message):
        converted(tmp_path / "given", tmp_path / "output", w=value)
    assert [path.name for path in (tmp_path / "output").iterdir()] == []


def test_a_changed_pickle_is_converted_again(tmp_path: Path) -> None:
    assert converted(tmp_path / "given", tmp_path / "output", w=torch.zeros(2))["w"].tolist() == [0.0, 0.0]
    before = (tmp_path / "output/source.json").read_text()
    assert converted(tmp_path / "given", tmp_path / "output", w=torch.ones(2))["w"].tolist() == [1.0, 1.0]
    assert (tmp_path / "output/source.json").read_text() != before
