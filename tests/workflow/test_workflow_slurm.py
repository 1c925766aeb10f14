"""A build through SLURM: real daemons on this machine, brought up by scripts/slurm_dev_cluster.sh and taken down again.

Needs root on Debian; elsewhere these tests are skipped, and say so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from workflow_project import REPOSITORY, Project, Run

pytestmark = [pytest.mark.workflow, pytest.mark.slurm]

CLUSTER = REPOSITORY / "scripts/slurm_dev_cluster.sh"
BUNDLE = "results/AX650/tiny-w8a16"
MANIFEST = f"{BUNDLE}/manifest.json"
PROFILE = (
    *("--workflow-profile", "workflow/profiles/slurm", "--slurm-status-command", "squeue", "--slurm-no-account"),
    *("--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5"),
)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("NO SLURM: bringing up a cluster needs root on Debian; nothing of it is tested here")
    environment = {**os.environ, "FOLDER": str(tmp_path_factory.mktemp("slurm"))}
    up = subprocess.run([CLUSTER, "up"], env=environment, capture_output=True, text=True)
    if up.returncode:
        pytest.skip(f"NO SLURM: {up.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run([CLUSTER, "down"], env=environment, check=True)


def submit(project: Project, *arguments: str) -> Run:
    return project.snakemake(MANIFEST, *PROFILE, *arguments)


def queue(states: str) -> list[tuple[str, str]]:
    """SLURM's jobs, finished ones for ten minutes too: id and the comment in which Snakemake names the rule."""
    rows = subprocess.run(
        ["squeue", "--noheader", "--states", states, "--format", "%i %k"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [(row.split()[0], row.split()[1]) for row in rows]


def comments(states: str) -> set[str]:
    return {found[0] for _, comment in queue(states) if (found := re.match(r"rule_\w+?(?=_wildcards|$)", comment))}


def running(rule: str) -> str | None:
    """The id of a running SLURM job of the rule."""
    return next((job for job, comment in queue("running") if rule in comment), None)


def once_running(rule: str, action: Callable[[str], object]) -> threading.Thread:
    """A thread that acts on the first job of the rule it sees running."""

    def wait() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if job := running(rule):
                action(job)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def local(small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a build without a cluster."""
    from workflow_project import new_project

    project = new_project(tmp_path_factory.mktemp("local") / "project", small_llama)
    assert project.snakemake(MANIFEST).status == 0
    return project.digests(BUNDLE)


def test_a_cluster_builds_the_same_bytes(cluster: None, project: Project, local: dict[str, str]) -> None:
    run = submit(project)
    assert run.status == 0, run.shown
    assert run.jobs == {"fetch": 1, "lock": 1, "layers_0_2": 1, "post": 1, "embed": 1, "bundle": 1}
    assert project.digests(BUNDLE) == local
    assert {"rule_lock", "rule_layers_0_2", "rule_post", "rule_embed", "rule_bundle"} <= comments("all")
    assert submit(project).did_nothing


@pytest.mark.soak
@pytest.mark.parametrize("fault", ["cancel", "kill", "drain"])
def test_a_fault_costs_a_retry_and_no_byte(cluster: None, project: Project, local: dict[str, str], fault: str) -> None:
    """A job is cancelled, its processes killed, or its node drained and resumed while it runs."""

    def act(job: str) -> None:
        if fault == "cancel":
            subprocess.run(["scancel", job], check=True)
        elif fault == "kill":
            subprocess.run(["scancel", "--signal", "KILL", "--full", job], check=True)
        else:
            node = subprocess.run(["hostname", "-s"], capture_output=True, text=True, check=True).stdout.strip()
            subprocess.run(["scontrol", "update", f"nodename={node}", "state=drain", "reason=test"], check=True)
            subprocess.run(["scancel", job], check=True)
            time.sleep(5)
            subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=True)

    watcher = once_running("layers", act)
    run = submit(project)
    watcher.join()
    assert run.status == 0, run.shown
    assert "layers_0_2 failed" in run.shown
    assert project.digests(BUNDLE) == local
