"""Read-only commands return during a running build; a second build waits for it and then replans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from workflow_project import LAYERS, TINY, Project, new_project, untraced

pytestmark = pytest.mark.workflow

MANIFEST = f"{TINY}/manifest.json"
CHECKS = "results/checks/AX650/tiny-w8a16/layers.json"
WAITING = "another build is running in"
AGAIN = "another build has run in"

_AXZOO = """#!/bin/sh
# Jobs that compile layers wait until the gate file exists.
case "$1 $*" in compile*layer_*)
    : > {gate}/waiting
    while [ ! -e {gate}/open ]; do sleep 0.05; done
esac
exec {axzoo} "$@"
"""


@dataclass(frozen=True)
class HeldBuild:
    """A build of MANIFEST whose layer jobs wait until `finish` is called."""

    project: Project
    gate: Path
    process: subprocess.Popen[str]

    @property
    def is_at_work(self) -> bool:
        return self.process.poll() is None and (self.gate / "waiting").exists()

    def finish(self) -> str:
        """Lets the build end. Returns its output."""
        (self.gate / "open").touch()
        shown = self.process.communicate(timeout=120)[0]
        assert self.process.returncode == 0, shown
        return shown


@contextmanager
def held_build(project: Project, gate: Path) -> Iterator[HeldBuild]:
    gate.mkdir()
    program = gate / "axzoo"
    program.write_text(_AXZOO.format(gate=gate, axzoo=Path(sys.executable).with_name("axzoo")))
    program.chmod(0o755)
    path = f"{gate}{os.pathsep}{untraced()['PATH']}"
    build = HeldBuild(project, gate, start(project, "snakemake", "--cores", "2", MANIFEST, PATH=path))
    try:
        wait_until(lambda: build.is_at_work)
        yield build
    finally:
        (gate / "open").touch()
        build.process.communicate(timeout=120)


def start(project: Project, *command: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=project.folder,
        env=untraced() | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def output_until(process: subprocess.Popen[str], words: str) -> str:
    """The output of `process`, up to the line that contains `words`."""
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if words in line:
            return output
    raise AssertionError(output)


@pytest.fixture(scope="module")
def build(small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeldBuild]:
    """A build that runs during all tests of this module."""
    folder = tmp_path_factory.mktemp("held")
    with held_build(new_project(folder / "project", small_llama), folder / "gate") as held:
        yield held


@pytest.mark.parametrize(
    ("command", "answers"),
    [
        (["snakemake", "-n", MANIFEST], ["layer                  3      3\n", "This was a dry run"]),
        (
            ["snakemake", "--summary", MANIFEST],
            ["llama_post.log\tok\tno update", f"{MANIFEST}\t-\tbundle\t-\tmissing\tupdate pending"],
        ),
        (["snakemake", "--detailed-summary", MANIFEST], ["shellcmd", f"{MANIFEST}\t-\tbundle\t-\t-\t-\tmissing"]),
        (["snakemake", MANIFEST, "--dag"], ["digraph snakemake_dag", 'label = "layer']),
        (["snakemake", MANIFEST, "--rulegraph"], ["digraph snakemake_dag", 'label = "layer']),
        (["snakemake", MANIFEST, "--filegraph"], ["digraph snakemake_dag", "bundle"]),
        (["snakemake", "--report", "report.html", MANIFEST], ["Report created"]),
        (["snakemake", "--list-rules"], ["check_layers\n", "layer\n"]),
        (["snakemake", "--lint"], ["Lints for "]),
        (["axzoo", "why", MANIFEST], [f"layer: {TINY}/llama_p16_l0_together.axmodel\n    missing: ", MANIFEST]),
        (["axzoo", "report", "config/zoo.yaml"], ["tiny-w8a16 for AX650\n", "\n  bundle   not built"]),
        (["snakemake", "--cores", "1", "results/locks/tiny/made_from.json"], ["Nothing to be done"]),
    ],
    ids=lambda value: " ".join(word for word in value if "/" not in word) if value[0] in ("snakemake", "axzoo") else "",
)
def test_read_only_commands_do_not_wait(build: HeldBuild, command: Sequence[str], answers: Sequence[str]) -> None:
    process = start(build.project, *command)
    output = process.communicate(timeout=60)[0]
    assert all(answer in output for answer in answers), output
    assert WAITING not in output
    assert build.is_at_work


def test_waiting_build_replans_and_has_nothing_to_do(project: Project, tmp_path: Path) -> None:
    with held_build(project, tmp_path / "gate") as first:
        second = start(project, "snakemake", "--cores", "2", MANIFEST)
        output = output_until(second, WAITING)
        assert first.is_at_work
        first.finish()
        output += second.communicate(timeout=120)[0]
    assert second.returncode == 0, output
    assert output.count(WAITING) == output.count(AGAIN) == output.count("Nothing to be done") == 1, output
    assert "done!" not in output


def test_waiting_build_replans_and_builds_the_rest(project: Project, tmp_path: Path) -> None:
    with held_build(project, tmp_path / "gate") as first:
        second = start(project, sys.executable, "-P", "-m", "snakemake", "--cores", "2", "--logger=axzoo", CHECKS)
        output = output_until(second, WAITING)
        assert first.is_at_work
        first.finish()
        output += second.communicate(timeout=120)[0]
    assert second.returncode == 0, output
    after = output.partition(AGAIN)[2]
    assert "checking layers done! 1/1" in after, output
    assert "build done! 1/1" in after, output
    assert (project / CHECKS).exists()


def test_second_build_does_not_wait_for_a_killed_one(project: Project, tmp_path: Path) -> None:
    """The jobs of the killed build continue, but do not hold its lock."""
    with held_build(project, tmp_path / "gate") as first:
        first.process.kill()
        first.process.wait()
        run = project.snakemake(MANIFEST)
    assert run.status == 0, run.shown
    assert WAITING not in run.shown
    assert run.shown.count("an earlier build was killed in") == 1
    assert run.jobs["layer"] == LAYERS


@pytest.mark.parametrize("signalled", [signal.SIGINT, signal.SIGTERM])
def test_waiting_build_can_be_interrupted(build: HeldBuild, signalled: signal.Signals) -> None:
    second = start(build.project, "snakemake", "--cores", "2", MANIFEST)
    output = output_until(second, WAITING)
    second.send_signal(signalled)
    output += second.communicate(timeout=60)[0]
    assert second.returncode == 130, output
    assert "Traceback" not in output
    assert build.is_at_work


def test_onstart_removes_only_the_default_rate_limit(project: Project) -> None:
    with (project / "Snakefile").open("a") as snakefile:
        snakefile.write("\nonsuccess:\n    print(f'limiter: {workflow.scheduler.job_rate_limiter}')\n")
    lock = "results/locks/tiny/made_from.json"
    assert "limiter: None" in project.snakemake(lock).shown
    assert "limiter: <" in project.snakemake("--forceall", "--max-jobs-per-timespan", "50/1s", lock).shown


def test_a_build_on_a_file_system_without_locks(small_llama: Path, tmp_path: Path) -> None:
    """Each of the three locks (llm_build, project, store) warns about what is not protected."""
    shim = tmp_path / "shim"
    shim.mkdir()
    (shim / "sitecustomize.py").write_text(
        "import errno, fcntl, os\n"
        "def flock(fd, operation):\n"
        "    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))\n"
        "fcntl.flock = flock\n"
    )
    path = f"{shim}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    sizes = ["--prefill_len", "16", "--kv_cache_len", "63", "--last_kv_cache_len", "16", "32"]
    process = subprocess.run(
        ["axzoo", "llm_build", "--input_path", str(small_llama), "--output_path", "out", "--work_path", "work", *sizes],
        cwd=tmp_path,
        env=untraced() | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    output = process.stdout
    assert process.returncode == 0, output
    assert "build llm model done!" in output
    assert output.count("work/lock cannot be locked (Function not implemented): do not run two llm_build") == 1, output
    assert "axzoo.lock cannot be locked (Function not implemented): do not start two builds in this folder" in output
    log = next((tmp_path / "work/results/logs").rglob("llama_post.log")).read_text()
    assert log.count("store/.lock cannot be locked (Function not implemented): do not run `axzoo store gc`") == 1
