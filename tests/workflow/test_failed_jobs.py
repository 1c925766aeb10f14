"""What a build says at its end, and about jobs that could not log why they ended."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from workflow_project import ENTRY, Project, untraced

pytestmark = pytest.mark.workflow

JOBS = """
rule all:
    input: "killed", "terminated", "full", "plain"
rule killed:
    output: "killed"
    log: "killed.log"
    resources: mem_mb=700
    shell: "sh -c 'kill -9 $$' > {log} 2>&1"
rule terminated:
    output: "terminated"
    log: "terminated.log"
    shell: "sh -c 'kill -11 $$' > {log} 2>&1"
rule full:
    output: "full"
    log: "full.log"
    shell: "python -m axzoo.cli inspect x 2> /dev/full; "
rule plain:
    output: "plain"
    log: "plain.log"
    shell: "echo the reason > {log}; exit 3"
"""

KILLED = "killed (signal 9): if nobody did that, memory ran out (it had requested 700 MB): run fewer jobs at once"


def test_logs_say_what_ended_a_job(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(JOBS)
    command = ["snakemake", "--logger", "axzoo", "--cores", "2", "--keep-going"]
    run = subprocess.run(command, cwd=tmp_path, env=untraced(), capture_output=True, text=True)
    expected = {
        "killed": f"axzoo: {KILLED}",
        "terminated": "axzoo: killed by signal 11 (SIGSEGV)",
        "full": "axzoo: no space left on the disk, not even for the log: free some space and run again",
        "plain": "the reason",
    }
    for name, reason in expected.items():
        assert (tmp_path / f"{name}.log").read_text().startswith(reason)
        assert run.stderr.count(f"        {reason}") == 1
    assert "build failed! 4 jobs failed" in run.stderr


GROUPS = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
"""Where memory cgroups are made, in versions 1 and 2."""


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A memory cgroup of 64 MB, without swap."""
    top = GROUPS[0] if GROUPS[0].is_dir() else GROUPS[1]
    limit, swap = (
        ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        if top == GROUPS[0]
        else ("memory.max", "memory.swap.max")
    )
    group = top / f"axzoo_test_{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(64 << 20))
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here, which needs root: {error}")
    with suppress(OSError):  # without swap, the file may be missing
        (group / swap).write_text(str(64 << 20) if top == GROUPS[0] else "0")
    yield group
    group.rmdir()


def test_a_job_that_linux_kills_for_memory_says_so(tmp_path: Path, small_cgroup: Path) -> None:
    """The job joins a cgroup of 64 MB and asks for 400 MB."""
    job = f"echo $$ > {small_cgroup}/cgroup.procs; exec python -c 'bytearray(400 << 20)' > {{log}} 2>&1"
    (tmp_path / "Snakefile").write_text(
        f'rule big:\n    output: "big"\n    log: "big.log"\n    resources: mem_mb=64\n    shell: "{job}"\n'
    )
    command = ["snakemake", "--logger", "axzoo", "--cores", "1"]
    run = subprocess.run(command, cwd=tmp_path, env=untraced(), capture_output=True, text=True)
    reason = (
        "axzoo: killed (signal 9) by Linux, because memory ran out (it had requested 64 MB): run fewer jobs at once"
    )
    assert (tmp_path / "big.log").read_text().startswith(reason)
    assert reason in run.stderr
    assert run.returncode == 1


def test_the_other_models_and_checks_are_finished_and_counted(rebuilt: Project) -> None:
    """Of three models, one lacks a tensor and another fails its check. No option is needed to keep going."""
    for name in ("lost", "other"):
        shutil.copytree(rebuilt / "checkpoint", rebuilt / name)
    rebuilt.edit_tensors(lambda tensors: tensors.pop("model.norm.weight"), "lost")
    models = {
        "tiny": ENTRY,
        "lost": ENTRY | {"path": "lost", "chips": ["AX650", "AX630C"]},
        "wrong": ENTRY | {"path": "other", "expect": "Rumpelstiltskin"},
    }
    rebuilt.write_matrix(models)
    shutil.rmtree(rebuilt / "results/checks")
    run = rebuilt.snakemake()
    assert run.status == 1
    (line,) = re.findall(r" - (\d+ built.*)", run.shown)
    assert line == (
        "1 built, 3 failed: AX620E/lost-w8a16 (lock), AX650/lost-w8a16 (lock), AX650/wrong-w8a16 (check_generation)"
    )
    assert run.jobs["check_layers"] == 2
    assert (rebuilt / "results/checks/AX650/tiny-w8a16/generation.json").exists()
