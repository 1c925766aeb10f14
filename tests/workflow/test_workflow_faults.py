"""Builds that are killed, interrupted or run twice: repeating the command gives the same bytes as an undisturbed build,
without manual cleanup.
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
def reference(small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    project = new_project(tmp_path_factory.mktemp("reference") / "project", small_llama)
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
    """Its jobs continue as orphans."""
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
class InjectedFault:
    """A fault during the job `verb`, and the jobs that survived it, by process id."""

    fault: str
    verb: str
    orphans: Mapping[int, tuple[str, ...]]


def inject_fault(project: Project, fault: Fault, rng: random.Random) -> InjectedFault | None:
    """Starts a build and injects the fault at a random moment of an early job. Returns None if the build ended before.

    Does not wait for orphans: the next build runs beside them.
    """
    before = jobs_of(project).keys()
    build = start(project)
    seen: set[int] = set()
    passed = rng.randrange(4)
    while build.poll() is None:
        seen |= jobs_of(project).keys() - before
        if len(seen) > passed:
            time.sleep(rng.uniform(0, 0.2))
            jobs = {job: words for job, words in jobs_of(project).items() if job not in before}
            if jobs:
                job = rng.choice(sorted(jobs))
                with contextlib.suppress(ProcessLookupError):  # it just ended
                    fault(build, job)
                    return InjectedFault(fault.__name__, jobs[job][0], surviving_jobs(project, build, fault))
        time.sleep(0.005)
    build.communicate()
    return None


def surviving_jobs(project: Project, build: subprocess.Popen[str], fault: Fault) -> Mapping[int, tuple[str, ...]]:
    """The jobs that still run after the build ended."""
    if fault is not kill_snakemake:
        build.communicate(timeout=300)
        return {}
    build.wait()  # its pipe stays open while an orphan runs
    return jobs_of(project)


def inject_fault_reliably(project: Project, fault: Fault, rng: random.Random) -> InjectedFault:
    """Injects a fault. If the build ends first, deletes its results and tries again."""
    for _ in range(5):
        injected = inject_fault(project, fault, rng)
        if injected is not None:
            return injected
        delete_results(project)
    raise AssertionError("no fault could be injected")


def delete_results(project: Project) -> None:
    wait_for_end(project)
    shutil.rmtree(project / "results", ignore_errors=True)


def finish(project: Project, reference: dict[str, str]) -> None:
    run = project.snakemake(MANIFEST)
    assert run.status == 0, run.shown
    wait_for_end(project)
    assert project.made() == reference
    assert project.snakemake(MANIFEST).did_nothing
    sizes = [(project / name).stat().st_size for name in reference]
    print(f"compared: {len(sizes)} files, {sum(sizes)} bytes")


@pytest.mark.parametrize(
    "fault", [kill_all, *(pytest.param(fault, marks=pytest.mark.soak) for fault in FAULTS if fault is not kill_all)]
)
def test_the_same_command_again_ends_with_the_same_bytes(
    project: Project, reference: dict[str, str], fault: Fault
) -> None:
    print(inject_fault_reliably(project, fault, random.Random(fault.__name__)))
    finish(project, reference)


def test_orphaned_job_and_next_build_write_the_same_file(project: Project, reference: dict[str, str]) -> None:
    """Snakemake is killed and its job suspended until the next build runs the same job: both write at once."""
    rng = random.Random(1)
    injected = inject_fault_reliably(project, kill_snakemake, rng)
    while not injected.orphans:  # the job ended at that moment
        injected = inject_fault_reliably(project, kill_snakemake, rng)
    held = [orphan for orphan in injected.orphans if hold(orphan)]
    assert held
    build = start(project)
    try:
        deadline = time.monotonic() + 60
        while not any(words in injected.orphans.values() for job, words in jobs_of(project).items() if job not in held):
            assert build.poll() is None and time.monotonic() < deadline, "the job of the orphan was not done again"
            time.sleep(0.01)
    finally:
        for orphan in held:
            os.kill(orphan, signal.SIGCONT)
    shown = build.communicate(timeout=120)[0]
    assert build.returncode == 0, shown
    finish(project, reference)


def hold(process: int) -> bool:
    """Suspends a process. Returns whether it still existed."""
    try:
        os.kill(process, signal.SIGSTOP)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.soak
def test_twenty_kills_at_random_moments_of_one_build(project: Project, reference: dict[str, str]) -> None:
    """Each build resumes from the previous one; results are deleted now and then."""
    rng = random.Random(20)
    injected = []
    for number in range(20):
        injected.append(inject_fault_reliably(project, rng.choice(FAULTS[:3]), rng))
        print(injected[-1].fault, injected[-1].verb, len(injected[-1].orphans))
        if number % 4 == 3:
            delete_results(project)
    assert {one.fault for one in injected} == {fault.__name__ for fault in FAULTS[:3]}
    assert any(one.orphans for one in injected)
    finish(project, reference)


def test_two_builds_at_once_wait_for_each_other(project: Project, reference: dict[str, str]) -> None:
    builds = [start(project) for _ in range(2)]
    shown = [build.communicate(timeout=120)[0] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], shown
    assert sum("another build is running in" in text for text in shown) == 1
    assert sum("Nothing to be done" in text for text in shown) == 1
    finish(project, reference)


def test_results_that_cannot_be_written(project: Project, reference: dict[str, str]) -> None:
    """Uses a read-only bind mount; needs permission to mount."""
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
    finish(project, reference)
