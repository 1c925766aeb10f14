"""Builds that are killed, interrupted or doubled: the same command again ends with the bytes of an undisturbed build.

Nothing is cleared by hand in between.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from running_jobs import jobs_of, wait_for_end
from workflow_project import Project, new_project, untraced

pytestmark = pytest.mark.workflow

BUNDLE = "results/AX650/tiny-w8a16"
MANIFEST = f"{BUNDLE}/manifest.json"


@pytest.fixture(scope="module")
def undisturbed(small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    project = new_project(tmp_path_factory.mktemp("undisturbed") / "project", small_llama)
    assert project.snakemake(MANIFEST).status == 0
    return project.made()


def start(project: Project, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["snakemake", "--cores", "2", MANIFEST, *arguments],
        cwd=project.folder,
        env=untraced(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def kill_all(build: subprocess.Popen[str], _: int) -> None:
    os.killpg(build.pid, signal.SIGKILL)


def kill_snakemake(build: subprocess.Popen[str], _: int) -> None:
    """Its jobs go on as orphans."""
    build.kill()


def kill_a_job(_: subprocess.Popen[str], job: int) -> None:
    os.kill(job, signal.SIGKILL)


def interrupt(build: subprocess.Popen[str], _: int) -> None:
    os.killpg(build.pid, signal.SIGINT)


def terminate(build: subprocess.Popen[str], _: int) -> None:
    build.terminate()


Fault = Callable[[subprocess.Popen[str], int], None]
FAULTS: tuple[Fault, ...] = (kill_all, kill_snakemake, kill_a_job, interrupt, terminate)


@dataclass(frozen=True)
class Struck:
    """A fault that hit a build while the job `verb` of its ran; the jobs that outlived it, by process id."""

    fault: str
    verb: str
    orphans: Mapping[int, tuple[str, ...]]


def strike(project: Project, fault: Fault, dice: random.Random) -> Struck | None:
    """A build, and the fault at a random moment of one of its first jobs; None when there was no job to hit any more.

    Orphans are not waited for: the next build begins beside them.
    """
    before = jobs_of(project).keys()
    build = start(project)
    seen: set[int] = set()
    passed = dice.randrange(4)
    while build.poll() is None:
        seen |= jobs_of(project).keys() - before
        if len(seen) > passed:
            time.sleep(dice.uniform(0, 0.2))
            jobs = {job: words for job, words in jobs_of(project).items() if job not in before}
            if jobs:
                job = dice.choice(sorted(jobs))
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    fault(build, job)
                    return Struck(fault.__name__, jobs[job][0], outlived(project, build, fault))
        time.sleep(0.005)
    build.communicate()
    return None


def outlived(project: Project, build: subprocess.Popen[str], fault: Fault) -> Mapping[int, tuple[str, ...]]:
    """The jobs that still run when the build has ended."""
    if fault is not kill_snakemake:
        build.communicate(timeout=300)
        return {}
    build.wait()  # its pipe stays open as long as an orphan lives
    return jobs_of(project)


def strike_surely(project: Project, fault: Fault, dice: random.Random) -> Struck:
    """Where a build ends before the fault hits it, its results are thrown away, and another is struck."""
    for _ in range(5):
        struck = strike(project, fault, dice)
        if struck is not None:
            return struck
        throw_away(project)
    raise AssertionError("no build could be struck")


def throw_away(project: Project) -> None:
    wait_for_end(project)
    shutil.rmtree(project / "results", ignore_errors=True)


def finish(project: Project, undisturbed: dict[str, str]) -> None:
    run = project.snakemake(MANIFEST)
    assert run.status == 0, run.shown
    wait_for_end(project)
    assert project.made() == undisturbed
    assert project.snakemake(MANIFEST).did_nothing
    sizes = [(project / name).stat().st_size for name in undisturbed]
    print(f"compared: {len(sizes)} files, {sum(sizes)} bytes")


@pytest.mark.parametrize(
    "fault", [kill_all, *(pytest.param(fault, marks=pytest.mark.soak) for fault in FAULTS if fault is not kill_all)]
)
def test_the_same_command_again_ends_with_the_same_bytes(
    project: Project, undisturbed: dict[str, str], fault: Fault
) -> None:
    print(strike_surely(project, fault, random.Random(fault.__name__)))
    finish(project, undisturbed)


def test_orphaned_job_and_next_build_write_the_same_file(project: Project, undisturbed: dict[str, str]) -> None:
    """Snakemake is killed and its job held up until the next build does the same job: both write at once."""
    dice = random.Random(1)
    struck = strike_surely(project, kill_snakemake, dice)
    while not struck.orphans:  # it ended in the moment it was struck
        struck = strike_surely(project, kill_snakemake, dice)
    held = [orphan for orphan in struck.orphans if hold(orphan)]
    assert held
    build = start(project)
    try:
        deadline = time.monotonic() + 60
        while not any(words in struck.orphans.values() for job, words in jobs_of(project).items() if job not in held):
            assert build.poll() is None and time.monotonic() < deadline, "the job of the orphan was not done again"
            time.sleep(0.01)
    finally:
        for orphan in held:
            os.kill(orphan, signal.SIGCONT)
    shown = build.communicate(timeout=120)[0]
    assert build.returncode == 0, shown
    finish(project, undisturbed)


def hold(process: int) -> bool:
    """Stops a process; whether it was still there."""
    try:
        os.kill(process, signal.SIGSTOP)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.soak
def test_twenty_kills_at_random_moments_of_one_build(project: Project, undisturbed: dict[str, str]) -> None:
    """Every resumed build goes on from what the one before left; results are thrown away now and then."""
    dice = random.Random(20)
    struck = []
    for number in range(20):
        struck.append(strike_surely(project, dice.choice(FAULTS[:3]), dice))
        print(struck[-1].fault, struck[-1].verb, len(struck[-1].orphans))
        if number % 4 == 3:
            throw_away(project)
    assert {one.fault for one in struck} == {fault.__name__ for fault in FAULTS[:3]}
    assert any(one.orphans for one in struck)
    finish(project, undisturbed)


def test_two_builds_at_once_wait_for_each_other(project: Project, undisturbed: dict[str, str]) -> None:
    builds = [start(project) for _ in range(2)]
    shown = [build.communicate(timeout=120)[0] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], shown
    assert sum("another build is at work in" in text for text in shown) == 1
    assert sum("Nothing to be done" in text for text in shown) == 1
    finish(project, undisturbed)


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
