"""Running jobs of a project, including orphans: `axzoo VERB` processes in the project's folder."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from workflow_project import Project


def jobs_of(project: Project) -> dict[int, tuple[str, ...]]:
    """Their arguments from VERB on, by process id. Jobs use relative paths, so their folder identifies the project."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended, or owned by another user
            words = (process / "cmdline").read_text(errors="replace").split("\0")[:-1]
            program = [i for i, word in enumerate(words[:3]) if Path(word).name == "axzoo"]
            if program and (process / "cwd").readlink() == project.folder.resolve():
                found[int(process.name)] = tuple(words[program[0] + 1 :])
    return found


def wait_for_end(project: Project, seconds: float = 60) -> None:
    """Waits until no job runs in the project."""
    deadline = time.monotonic() + seconds
    while jobs := jobs_of(project):
        assert time.monotonic() < deadline, jobs
        time.sleep(0.05)
