"""The number of layers per job depends on the number of workers and stays the same while the layers do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from axzoo.llm_build.project import Project, choose_layers_per_job
from axzoo.matrix.build import Build

QWEN2_05B = {"layer": 14912384, "post": 136135552, "kv_width": 128}
ENTRY: dict[str, Any] = {
    "path": "/models/Q",
    "model_type": "qwen2",
    "num_hidden_layers": 24,
    "chips": ["AX650"],
    "sizes": QWEN2_05B,
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with the lock of a model."""
    (tmp_path / "results/locks/Q").mkdir(parents=True)
    (tmp_path / "results/locks/Q/made_from.json").write_text("one")
    return Project(tmp_path, -1)


def build_layers(project: Project, build: Build) -> None:
    for receipt in build.receipt_files:
        (project.folder / receipt).parent.mkdir(parents=True, exist_ok=True)
        (project.folder / receipt).write_text("")


@pytest.mark.parametrize(("parallel", "layers"), [(1, 8), (3, 8), (4, 6), (8, 3), (24, 1), (100, 1)])
def test_every_worker_has_a_job(project: Project, parallel: int, layers: int) -> None:
    build = project.write_matrix("Q", ENTRY, {})
    assert choose_layers_per_job(project.folder, build, parallel) == layers


def test_choice_is_kept_while_the_layers_are_unchanged(project: Project) -> None:
    build = project.write_matrix("Q", ENTRY, {})
    assert choose_layers_per_job(project.folder, build, 1) == 8
    assert choose_layers_per_job(project.folder, build, 8) == 3  # nothing is built yet
    build_layers(project, build)
    assert choose_layers_per_job(project.folder, build, 1) == 3
    longer = project.write_matrix("Q", {**ENTRY, "kv_cache_len": 511}, {})
    assert choose_layers_per_job(project.folder, longer, 1) == 8
    (project.folder / "results/locks/Q/made_from.json").write_text("two")
    assert choose_layers_per_job(project.folder, longer, 4) == 6
    (project.folder / build.receipt_files[3]).unlink()
    assert choose_layers_per_job(project.folder, longer, 8) == 3


@pytest.mark.parametrize("content", ["", "[]", "1", '{"of": 1}'])
def test_damaged_record_is_replaced(project: Project, content: str) -> None:
    build = project.write_matrix("Q", ENTRY, {})
    assert choose_layers_per_job(project.folder, build, 8) == 3
    build_layers(project, build)
    (record,) = (project.folder / "config/layers_per_job").iterdir()
    record.write_text(content)
    assert choose_layers_per_job(project.folder, build, 24) == 1
