#!/usr/bin/env python
"""Compare two checkouts of axzoo: a plan with nothing to do, one layer's job, and the whole build of config/demo.yaml.

    python scripts/bench_checkouts.py BEFORE AFTER [--rounds N]

Both need a .venv (`make install`). Runs alternate between the checkouts, so that noise of the machine affects both.
Prints the medians and the ratio after / before, of elapsed and of CPU time.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BUNDLE = "results/AX650/SmolLM2-135M-Instruct-Q4_1-w8a16"
LAYER = f"{BUNDLE}/llama_p128_l0_together.axmodel"
DEMO = ["snakemake", "--cores", "2", "--configfile", "config/demo.yaml"]


@dataclass(frozen=True)
class Project:
    """A folder with one checkout's workflow, and that checkout's programs."""

    checkout: Path
    folder: Path

    def run(self, command: list[str] | str) -> str:
        path = f"{self.checkout / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | {"PATH": path},
            shell=isinstance(command, str),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{self.checkout}: {command} failed:\n{done.stdout}")
        return done.stdout

    def time(self, command: list[str] | str) -> tuple[float, float]:
        """Elapsed and CPU seconds."""
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        self.run(command)
        elapsed, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        return elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        projects = [
            make_project(path.resolve(), Path(folder, name)) for name, path in vars(args).items() if name != "rounds"
        ]
        layer_commands = [layer_command(project) for project in projects]
        for name, measure in {
            "plan with nothing to do": lambda i: projects[i].time([*DEMO, "-n"]),
            "a layer's job": lambda i: time_layer(projects[i], layer_commands[i]),
            "demo build": lambda i: time_build(projects[i]),
        }.items():
            report(name, measure, args.rounds)


def make_project(checkout: Path, folder: Path) -> Project:
    """A project with the demo built in it."""
    for name in ("workflow", "config", "profiles"):
        shutil.copytree(checkout / name, folder / name)
    shutil.copy(checkout / "Snakefile", folder)
    project = Project(checkout, folder)
    project.run(DEMO)
    return project


def layer_command(project: Project) -> str:
    """The shell command of one layer's job, as Snakemake prints it."""
    planned = project.run([*DEMO, "-n", "-p", "--config", "layers_per_job=1", "--force", LAYER])
    (command,) = re.findall(r"axzoo (?:layer|compile) [^\n]*", planned)
    return str(command)


def time_layer(project: Project, command: str) -> tuple[float, float]:
    """Without the store's entry: the layer is compiled."""
    shutil.rmtree(project.folder / "results/store")
    return project.time(command)


def time_build(project: Project) -> tuple[float, float]:
    """Without fetching, which the network determines."""
    for path in (project.folder / "results").iterdir():
        if path.name != "checkpoints":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return project.time(DEMO)


def report(name: str, measure: Callable[[int], tuple[float, float]], rounds: int) -> None:
    runs: list[list[tuple[float, float]]] = [[], []]
    for number in range(rounds):
        for i in (0, 1) if number % 2 == 0 else (1, 0):
            runs[i].append(measure(i))
    for what, column in (("elapsed", 0), ("CPU", 1)):
        before, after = (statistics.median(run[column] for run in side) for side in runs)
        ratios = sorted(b[column] / a[column] for a, b in zip(*runs, strict=True))
        print(
            f"{name}, {what}: {before:.3f} s before, {after:.3f} s after; ratio of medians {after / before:.3f}, "
            f"of pairs {ratios[0]:.3f} to {ratios[-1]:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
