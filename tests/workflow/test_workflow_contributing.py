"""The other worked examples of CONTRIBUTING.md, each applied to a copy of the source tree."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from workflow_project import TINY, Project, sha256, untraced

import contributing

pytestmark = pytest.mark.workflow


def test_the_family(tmp_path: Path) -> None:
    """The example's own command, in the copy."""
    sources = contributing.copy_sources(tmp_path)
    contributing.apply("Add a family", tmp_path)
    command = 'pytest tests/model/families tests/parts/test_embedding_files.py -k "mistral or every_family"'
    assert f"```sh\n{command}\n```" in (contributing.ROOT / "CONTRIBUTING.md").read_text()
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command), "-p", "no:cacheprovider", "-p", "no:randomly", "-rA"],
        cwd=tmp_path,
        env=untraced() | {"PYTHONPATH": str(sources)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    for test in ("oracle_agrees_with_transformers", "built_model_agrees_with_transformers"):
        assert f"PASSED tests/model/families/test_parity.py::test_the_{test}[mistral, sliding window]" in done.stdout


def test_the_part_kind(project: Project, tmp_path: Path) -> None:
    sources = contributing.copy_sources(tmp_path / "copy")
    contributing.apply("Add a part kind", tmp_path / "copy")
    environment = {"PYTHONPATH": str(sources)}
    run = project.snakemake(**environment)
    assert run.status == 0, run.shown
    assert run.jobs["norm"] == 1
    norm = load_file(project / "checkpoint/model.safetensors")["model.norm.weight"]
    name = "model.norm.weight.float32.bin"
    found = torch.frombuffer(bytearray((project / f"{TINY}/{name}").read_bytes()), dtype=torch.float32)
    assert torch.equal(found, norm.float())
    manifest = json.loads((project / f"{TINY}/manifest.json").read_text())
    assert manifest["files"][name]["sha256"] == sha256(project / f"{TINY}/{name}")
    assert manifest["parts"][name]["kind"] == "norm"
    assert project.snakemake(**environment).did_nothing
    axzoo = [Path(sys.executable).with_name("axzoo")]
    for arguments, output in ((["verify", TINY], "all match the manifest"), (["store", "list"], " norm ")):
        done = subprocess.run(
            [*axzoo, *arguments], cwd=project.folder, env=untraced() | environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert output in done.stdout
