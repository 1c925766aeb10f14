"""What a build says at its end, and about jobs that could not log why they ended."""

from __future__ import annotations

import re
import shutil
import subprocess
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


def test_the_other_models_and_checks_are_finished_and_counted(rebuilt: Project) -> None:
    """Of three models, one has no checkpoint and another fails its check. No option is needed to keep going."""
    shutil.copytree(rebuilt / "checkpoint", rebuilt / "other")
    models = {
        "tiny": ENTRY,
        "lost": ENTRY | {"path": "nowhere", "chips": ["AX650", "AX630C"]},
        "wrong": ENTRY | {"path": "other", "expect": "Rumpelstiltskin"},
    }
    rebuilt.write_matrix(models)
    shutil.rmtree(rebuilt / "results/checks")
    run = rebuilt.snakemake()
    assert run.status == 1
    (line,) = re.findall(r" - (\d+ built.*)", run.shown)
    assert line == (
        "1 built, 3 failed: AX620E/lost-w8a16 (fetch), AX650/lost-w8a16 (fetch), AX650/wrong-w8a16 (check_generation)"
    )
    assert run.jobs["check_layers"] == 2
    assert (rebuilt / "results/checks/AX650/tiny-w8a16/generation.json").exists()
