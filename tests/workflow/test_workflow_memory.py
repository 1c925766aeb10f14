"""The memory of the machine: jobs that fit together run at once, and a job that can never fit is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from workflow_project import ENTRY, REPOSITORY, TINY, Project

from axzoo.matrix.build import Build
from axzoo.matrix.entries import load_zoo

pytestmark = pytest.mark.workflow

FAKE = """#!/bin/sh
case "$1" in
check-*)
    echo + >> {log}
    sleep 2
    echo - >> {log}
    for word; do [ "$last" != --output ] || echo '{{}}' > "$word"; last=$word; done ;;
*) exec {axzoo} "$@" ;;
esac
"""
"""An `axzoo` whose checks only record their start and end."""


def machine_with(megabytes: int, folder: Path) -> dict[str, str]:
    """The environment in which Python sees so much memory (in 10^6 bytes)."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os\n"
        "real = os.sysconf\n"
        f"os.sysconf = lambda name: {{'SC_PHYS_PAGES': {megabytes}, 'SC_PAGE_SIZE': 10**6}}.get(name) or real(name)\n"
    )
    return {"PYTHONPATH": f"{folder}:{REPOSITORY / 'src'}"}


def build_of(project: Project) -> Build:
    return next(iter(load_zoo(project / "config/zoo.yaml", project / "config/chips.yaml").builds()))


def test_four_checks_do_not_start_where_two_fit(rebuilt: Project, tmp_path: Path) -> None:
    """The matrix has no sizes, so each check is taken to need 8,000 MB."""
    log, bin_folder = tmp_path / "starts", tmp_path / "bin"
    bin_folder.mkdir()
    program = bin_folder / "axzoo"
    program.write_text(FAKE.format(log=log, axzoo=shutil.which("axzoo")))
    program.chmod(0o755)
    needed = build_of(rebuilt).needs("check_layers").mem_mb
    shutil.rmtree(rebuilt / "results/checks")
    path = rebuilt / "Snakefile"
    path.write_text(f"import os\nos.environ['PATH'] = '{bin_folder}:' + os.environ['PATH']\n{path.read_text()}")
    machine = machine_with(2 * needed + 600, tmp_path / "machine")
    threads = ("--set-threads", "check_layers=1", "check_generation=1")
    run = rebuilt.snakemake("--cores", "8", *threads, **machine)
    assert sum(run.jobs.values()) == 4, run.shown
    running = [0]
    for mark in log.read_text().split():
        running.append(running[-1] + (1 if mark == "+" else -1))
    assert max(running) == 2


def test_a_job_that_can_never_fit_is_refused_with_advice_that_works(project: Project, tmp_path: Path) -> None:
    project.write_matrix({"tiny": ENTRY | {"sizes": {"layer": 20_000_000, "post": 2_000_000_000, "kv_width": 64}}})
    needed = build_of(project).needs("check_generation").mem_mb
    small = machine_with(needed + 499, tmp_path / "machine")  # 500 MB are reserved
    for arguments in ((), ("-n",)):
        run = project.snakemake(*arguments, **small)
        assert run.status == 1
        (message,) = re.findall(r" - (check_generation of .*)", run.shown)
        assert message.startswith(
            f"check_generation of {TINY} needs about {needed} MB of memory in one job, "
            f"and this machine has {needed - 1} MB for jobs: "
        )
        assert not run.jobs
        assert not project.files()
    target, option = re.findall(r"`(?:snakemake )?([^`]+)`", message)
    for advice in (target, option):
        run = project.snakemake("-n", *advice.split(), **small)
        assert run.status == 0, run.shown
