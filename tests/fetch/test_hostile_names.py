"""Tensor names that look like paths: nothing is written outside the results folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_gguf import make_tiny

from axzoo.cli import main
from tiny_model import Checkpoint

NAMES = ["../../x", "/tmp/axzoo-hostile/x", "model.layers.0.self_attn.../../../x.weight", "../../x.rotary_emb.inv_freq"]
"""The last one ends like a rotary table, which adds nothing to a model: checkpoints with it are accepted."""


def safetensors(folder: Path, checkpoint: Path, name: str) -> Path:
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors") | {name: torch.ones(4)}
    save_file(tensors, folder / "model.safetensors")
    return folder


def pickled(folder: Path, checkpoint: Path, name: str) -> Path:
    shutil.copytree(checkpoint, folder)
    torch.save(load_file(folder / "model.safetensors") | {name: torch.ones(4)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def gguf(folder: Path, _: Path, name: str) -> Path:
    folder.mkdir()
    return make_tiny(tied=True).write(folder / "x.gguf", extra={name: np.ones(4, np.float32)})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("write", [safetensors, pickled, gguf])
def test_a_tensor_name_is_not_used_as_a_path(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    write: Callable[[Path, Path, str], Path],
    name: str,
) -> None:
    project = tmp_path / "deep" / "er" / "project"
    (project / "results").mkdir(parents=True)
    given = write(tmp_path / "given", checkpoint.folder, name)
    monkeypatch.chdir(project)
    before = _outside(tmp_path, project)

    status = main(["fetch", "--path", str(given), "--output", "results/checkpoints/m"])
    if status == 0:
        lock = ["lock", "--source=results/checkpoints/m/source.json", "--model_type=llama", "--num_hidden_layers=2"]
        status = main([*lock, "--output=results/locks/m"])
    if name.endswith("inv_freq") and write is not gguf:
        assert status == 0
    else:
        assert status == 1
        assert name in capsys.readouterr().err
    assert _outside(tmp_path, project) == before
    assert not Path("/tmp/axzoo-hostile").exists()
    assert sorted(path.name for path in project.iterdir()) == ["results"]


def _outside(root: Path, project: Path) -> dict[Path, int]:
    found = (path for path in root.rglob("*") if not path.is_relative_to(project))
    return {path: path.stat().st_mtime_ns for path in found}
