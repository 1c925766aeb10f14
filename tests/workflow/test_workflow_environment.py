"""`snakemake` with an unwritable home, closed streams, other encodings, odd paths and files in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from workflow_project import ENTRY, Project, new_project, untraced

pytestmark = pytest.mark.workflow

LOCK = "results/locks/tiny/made_from.json"
PROMPT = "é 中 What?"


def built_lock(project: Project, **environment: str) -> None:
    run = project.snakemake(LOCK, **environment)
    assert run.jobs == {"fetch": 1, "lock": 1}, run.shown


@pytest.mark.parametrize("kind", ["missing", "read-only"])
def test_home_that_cannot_be_written(project: Project, tmp_path: Path, kind: str) -> None:
    """The cache is in the project then. Root may write read-only folders, but not /proc."""
    home = Path("/proc/none") if kind == "missing" else Path("/proc") if os.geteuid() == 0 else tmp_path / "home"
    if home == tmp_path / "home":
        home.mkdir(mode=0o555)
    caches = {"HOME": str(home), "XDG_CACHE_HOME": f"{home}/.cache", "XDG_CONFIG_HOME": f"{home}/.config"}
    built_lock(project, **caches)
    assert (project / ".snakemake/cache/snakemake").is_dir()


@pytest.mark.parametrize(
    ("environment", "end"),
    [
        ({"PYTHONIOENCODING": "ascii"}, ""),
        ({"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}, ""),
        ({}, ">&-"),
        ({}, "<&- >&- 2>&-"),
    ],
    ids=["ascii streams", "ascii locale", "no stdout", "no streams"],
)
def test_streams_and_encodings(built: Project, tmp_path: Path, environment: dict[str, str], end: str) -> None:
    """The generation check, whose command contains the prompt, and whose output contains prompt and answer."""
    project = built.copy_to(tmp_path / "pröjekt 中")
    project.write_matrix({"tiny": ENTRY | {"prompt": PROMPT}})
    report = "results/checks/AX650/tiny-w8a16/generation.json"
    (project / report).unlink()
    plain = {name: value for name, value in untraced().items() if not name.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    command = ["sh", "-c", f"exec snakemake {report} --cores 2 --rerun-triggers params {end}"]
    done = subprocess.run(command, cwd=project.folder, env=plain | environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    log = (project / report).with_suffix(".log").read_text()
    assert (PROMPT if not environment.get("PYTHONIOENCODING") else ascii(PROMPT)[1:-1]) in log


def test_path_with_characters_of_shells_and_formats(small_llama: Path, tmp_path: Path) -> None:
    built_lock(new_project(tmp_path / "a {b} {wildcards.c} \"d\" 'e' $f `g` *h[1]? %s \\i\n~", small_llama))


def refused(project: Project, *arguments: str) -> list[str]:
    """The lines of a command that must fail without a traceback."""
    run = project.snakemake(*arguments)
    assert run.status == 1
    assert "Traceback" not in run.shown
    return [line for line in run.shown.splitlines() if "Using workflow specific profile" not in line]


def test_path_that_is_not_utf8(project: Project) -> None:
    folder = Path(os.fsdecode(os.fsencode(project.folder) + b"\xff"))
    shutil.move(project.folder, folder)
    assert refused(Project(folder)) == [f"axzoo: {str(folder)!a} is not UTF-8 text: rename the folder"]


@pytest.mark.parametrize("name", ["results", ".snakemake"])
def test_files_in_place_of_folders(project: Project, name: str) -> None:
    (project / name).touch()
    *_, line = refused(project)
    assert line.endswith(("Not a directory: 'results'", f"File exists: '{project / name}'"))
