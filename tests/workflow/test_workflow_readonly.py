"""Commands that only look answer at once beside a running build; a second build waits, and plans again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from workflow_project import Project, new_project, untraced

pytestmark = pytest.mark.workflow

BUNDLE = "results/AX650/tiny-w8a16"
MANIFEST = f"{BUNDLE}/manifest.json"

_AXZOO = """#!/bin/sh
# Every job that compiles layers waits until the gate is opened.
if [ "$1" = layer ]; then
    : > {gate}/waiting
    while [ ! -e {gate}/open ]; do sleep 0.05; done
fi
exec {axzoo} "$@"
"""


@dataclass(frozen=True)
class HeldBuild:
    """A build of MANIFEST whose first job that compiles layers waits until `finish`."""

    project: Project
    gate: Path
    process: subprocess.Popen[str]

    @property
    def is_at_work(self) -> bool:
        return self.process.poll() is None and (self.gate / "waiting").exists()

    def finish(self) -> str:
        """Let the build end; what it showed."""
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
    build = HeldBuild(project, gate, start(project, ["snakemake", "--cores", "2", MANIFEST], path=gate))
    try:
        wait_until(lambda: build.is_at_work)
        yield build
    finally:
        (gate / "open").touch()
        build.process.communicate(timeout=120)
