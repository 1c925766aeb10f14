"""Builds that are killed, interrupted or doubled: the same command again ends with the bytes of an undisturbed build.

Nothing is cleared by hand in between.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from workflow_project import Project, new_project

pytestmark = pytest.mark.workflow

BUNDLE = "results/AX650/tiny-w8a16"
MANIFEST = f"{BUNDLE}/manifest.json"
PARTS = ("results/AX650", "results/receipts", "results/locks", "results/store")
SECONDS = 4.0
"""About what a build takes; faults come within."""


def files_made(project: Project) -> dict[str, str]:
    """Everything a build leaves behind, by content; the store's lock is empty and no result."""
    return {f"{part}/{name}": digest for part in PARTS for name, digest in project.digests(part).items()}


@pytest.fixture(scope="module")
def undisturbed(small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    project = new_project(tmp_path_factory.mktemp("undisturbed") / "project", small_llama)
    assert project.snakemake(MANIFEST).status == 0
    return files_made(project)


def start(project: Project, *arguments: str) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        ["snakemake", "--cores", "2", MANIFEST, *arguments],
        cwd=project.folder,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def kill_all(build: subprocess.Popen[str]) -> None:
    os.killpg(build.pid, signal.SIGKILL)


def kill_snakemake(build: subprocess.Popen[str]) -> None:
    """Its jobs go on as orphans."""
    build.kill()


def kill_a_job(build: subprocess.Popen[str]) -> None:
    """The youngest process of the build's, where one runs."""
    found = subprocess.run(["pgrep", "--newest", "--pgroup", str(build.pid)], capture_output=True, text=True).stdout
    if found and int(found) != build.pid:
        os.kill(int(found), signal.SIGKILL)


def interrupt(build: subprocess.Popen[str]) -> None:
    os.killpg(build.pid, signal.SIGINT)


def terminate(build: subprocess.Popen[str]) -> None:
    build.terminate()


FAULTS = (kill_all, kill_snakemake, kill_a_job, interrupt, terminate)


def survive(project: Project, fault: Callable[[subprocess.Popen[str]], None], after: float) -> None:
    """A build with a fault in it. Orphans are not waited for: the next build begins beside them."""
    build = start(project)
    time.sleep(after)
    if build.poll() is None:
        fault(build)
    if fault is kill_snakemake:
        build.wait()  # its pipe stays open as long as an orphan lives
    else:
        build.communicate(timeout=120)


def finish(project: Project, undisturbed: dict[str, str]) -> None:
    run = project.snakemake(MANIFEST)
    assert run.status == 0, run.shown
    orphans_end(project)
    assert files_made(project) == undisturbed
    assert project.snakemake(MANIFEST).did_nothing


def orphans_end(project: Project) -> None:
    deadline = time.monotonic() + 60
    while subprocess.run(["pgrep", "--full", f"axzoo .*{project.folder}"], capture_output=True).returncode == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("fault", [*FAULTS[:2], *(pytest.param(fault, marks=pytest.mark.soak) for fault in FAULTS[2:])])
def test_the_same_command_again_ends_with_the_same_bytes(
    project: Project, undisturbed: dict[str, str], fault: Callable[[subprocess.Popen[str]], None]
) -> None:
    survive(project, fault, after=SECONDS * 0.7)
    finish(project, undisturbed)


@pytest.mark.soak
def test_twenty_kills_at_random_moments_of_one_build(project: Project, undisturbed: dict[str, str]) -> None:
    """Every resumed build goes on from what the one before left; results are thrown away now and then."""
    dice = random.Random(20)
    for number in range(20):
        fault = dice.choice(FAULTS[:3])
        survive(project, fault, after=dice.uniform(0.5, SECONDS))
        if number % 4 == 3:
            for name in project.files("results/AX650"):
                (project / "results/AX650" / name).unlink()
    finish(project, undisturbed)


def test_two_builds_at_once_wait_for_each_other(project: Project, undisturbed: dict[str, str]) -> None:
    builds = [start(project) for _ in range(2)]
    shown = [build.communicate(timeout=120)[0] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], shown
    assert sum("another build is at work in" in text for text in shown) == 1
    assert sum("Nothing to be done" in text for text in shown) == 1
    finish(project, undisturbed)


def test_a_dry_run_beside_a_build_does_not_wait(project: Project) -> None:
    build = start(project)
    time.sleep(SECONDS * 0.5)
    assert project.snakemake("-n", MANIFEST).status == 0
    build.communicate(timeout=120)
    assert build.returncode == 0


def test_results_that_cannot_be_written(project: Project, undisturbed: dict[str, str]) -> None:
    """A read-only file system, as a mount of the folder upon itself; needs the right to mount."""
    results = project / "results"
    results.mkdir()
    mounts = [["mount", "--bind", results, results], ["mount", "-o", "remount,ro,bind", results]]
    if any(subprocess.run(command, capture_output=True).returncode for command in mounts):
        subprocess.run(["umount", results], capture_output=True)
        pytest.skip("NOT TESTED: a read-only folder, which takes the right to mount")
    try:
        run = project.snakemake(MANIFEST)
    finally:
        subprocess.run(["umount", results], check=True)
    assert run.status == 1
    assert "Read-only file system" in run.shown
    finish(project, undisturbed)
