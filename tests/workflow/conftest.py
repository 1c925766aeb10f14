"""Projects for tests that run Snakemake."""

from __future__ import annotations

from pathlib import Path

import pytest
from workflow_project import DEMO, ENTRY, TINY, Project, new_project, write_checkpoint


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that all projects copy."""
    folder = tmp_path_factory.mktemp("small") / "llama"
    write_checkpoint(folder)
    return folder


@pytest.fixture
def project(small_llama: Path, tmp_path: Path) -> Project:
    """A project without results."""
    return new_project(tmp_path / "project", small_llama)


@pytest.fixture(scope="session")
def built(small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with one model, built for AX650 and then for AX630C; read-only.

    The builds are sequential: if two jobs compile the same layer at once, one file may not be linked to the store.
    """
    project = new_project(tmp_path_factory.mktemp("built") / "project", small_llama)
    for chips in (["AX650"], ["AX650", "AX630C"]):
        project.write_matrix({"tiny": ENTRY}, chips=chips)
        run = project.snakemake()
        assert run.status == 0, run.shown
    return project


@pytest.fixture
def rebuilt(built: Project, tmp_path: Path) -> Project:
    """A copy of the built project that tests can change."""
    return built.copy_to(tmp_path / "project")


@pytest.fixture(scope="session")
def demo(small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with the demo's bundle, built locally; read-only. Needs a package index."""
    project = new_project(tmp_path_factory.mktemp("demo") / "project", small_llama)
    run = project.snakemake(f"{DEMO}/manifest.json")
    assert run.status == 0, run.shown
    return project


@pytest.fixture
def in_place(small_llama: Path, tmp_path: Path) -> Project:
    """A project with an absolute checkpoint path, which all jobs can read from any working folder."""
    return _in_place(tmp_path / "project", small_llama)


@pytest.fixture(scope="session")
def built_in_place(small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The sha256 of each file of its bundle."""
    project = _in_place(tmp_path_factory.mktemp("in_place") / "project", small_llama)
    run = project.snakemake(f"{TINY}/manifest.json")
    assert run.status == 0, run.shown
    return project.digests(TINY)


def _in_place(folder: Path, checkpoint: Path) -> Project:
    project = new_project(folder, checkpoint)
    project.write_matrix({"tiny": ENTRY | {"path": str(checkpoint)}})
    return project
