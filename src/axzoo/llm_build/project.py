"""The work folder of `llm_build`: a project of the zoo with a matrix of one model, built by real Snakemake.

config/: the matrix, the chips and what else the run was given. results/: as in any project; its store serves all runs.
"""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import axzoo
from axzoo.core.errors import AxzooError
from axzoo.core.files import canonical_json, read_json, sha256_of, write_json, write_text
from axzoo.core.locks import lock_file
from axzoo.llm_build.output import place_copy
from axzoo.matrix.batches import parts_per_job
from axzoo.matrix.build import Build
from axzoo.matrix.chips import ChipTable, load_chips
from axzoo.matrix.entries import load_zoo
from axzoo.matrix.lock_state import MADE_FROM
from axzoo.parts.kinds import kind_of

logger = logging.getLogger(__name__)


KEPT = Path("config/layers_per_job")
"""One file per bundle, in the project's folder."""


def choose_layers_per_job(project: Path, build: Build, parallel: int) -> int:
    """The number for `parallel` jobs at once, or what these layers were built with. The model's lock must be there."""
    layer = kind_of("layer")
    decides = canonical_json(
        {
            "recipe": build.choices(layer),
            "lock": sha256_of(project / build.locks / MADE_FROM),
            "compiler": build.compiler(layer),
        }
    )
    file = project / KEPT / f"{build.chip}-{build.name}.json"
    kept = _read(file)
    if kept.get("of") == decides and all((project / receipt).exists() for receipt in build.receipt_files):
        return int(kept["layers_per_job"])
    number = min(parts_per_job(layer.parameters(dict(build.sizes))), math.ceil(build.num_hidden_layers / parallel))
    write_json(file, {"layers_per_job": number, "of": decides})
    return number


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(read_json(file))
    except (AxzooError, TypeError, ValueError):
        return {}


WORKFLOW = Path(axzoo.__file__).parent / "project"
"""The Snakefile, its rules and config/chips.yaml: links in a clone, files in an installed wheel."""

CHIPS = "config/chips.yaml"
MATRIX = "config/zoo.yaml"
MODEL_CONFIG = "config/model_config.json"
CALIBRATION_TEXT = "config/calibration.txt"

_OPTIONS = {"path": "input_path", "chips": "chip"}
"""A matrix's keys that are no option's name."""

_PAUSE = 0.2
"""Seconds between two looks at what a job has written."""

_KEPT = "what is built is kept"


@dataclass(frozen=True)
class Project:
    """The work folder; `lock` is the file descriptor of its lock, which every process of the build holds."""

    folder: Path
    lock: int

    def describe(self, name: str, entry: Mapping[str, Any], override: Mapping[str, Any]) -> Build:
        """Writes the matrix of one model, one build; returns the build, whether or not it fits its chip. `override`
        becomes its `model_config`.

        Raises AxzooError for what the matrix does not accept.
        """
        if override:
            write_json(self.folder / MODEL_CONFIG, override)
            entry = {**entry, "model_config": MODEL_CONFIG}
        write_text(self.folder / CHIPS, (WORKFLOW / CHIPS).read_text())
        write_text(self.folder / MATRIX, yaml.safe_dump({"models": {name: entry}}, sort_keys=False))
        try:
            (build,) = load_zoo(self.folder / MATRIX, self.folder / CHIPS).builds_of(name)
        except AxzooError as error:
            raise AxzooError(_in_options(str(error))) from None
        return build

    @property
    def chips(self) -> ChipTable:
        """The chips there are."""
        return load_chips(self.folder / CHIPS)

    def take_in(self, file: Path, name: str) -> str:
        """A copy of a user's file, called `name` in the project; one that is the same keeps its age."""
        if not file.is_file():
            raise AxzooError(f"{file} is missing")
        place_copy(file, self.folder / name)
        return name

    def make(
        self,
        targets: Sequence[str | Path],
        jobs: int,
        layers_per_job: int,
        quiet: bool = False,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Snakemake's own files of the project, `targets`, with up to `jobs` at once; `quiet` shows failures only.
        `meanwhile` is called again and again until it has ended.

        Raises AxzooError when it fails; it has said why. An interrupt waits until the jobs have ended.
        """
        # -P: the current folder, which may be a checkpoint, is no place to import from.
        command = [sys.executable, "-P", "-m", "snakemake", *map(str, targets), *self._options(jobs)]
        command += ["--config", f"layers_per_job={layers_per_job}"]
        command += ["--quiet", "progress"] if quiet else []
        scripts = sysconfig.get_path("scripts")
        environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` ends a build as Ctrl-C does
        process = subprocess.Popen(command, env=environment, pass_fds=[self.lock], process_group=0)
        try:
            while (status := process.poll()) is None:
                meanwhile()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_PAUSE)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            logger.warning(f"interrupted; {_KEPT}, the same command goes on from there")
            raise
        if status:
            raise AxzooError(
                f"the build failed, as said above; logs are in {self.folder / 'results/logs'}, those of checks in "
                f"{self.folder / 'results/checks'}; {_KEPT}"
            )

    def _options(self, jobs: int) -> list[str]:
        """`--nolock`: the folder's lock is ours, and does not outlive a killed process."""
        return [
            f"--snakefile={WORKFLOW / 'Snakefile'}",
            f"--directory={self.folder}",
            f"--cores={jobs}",
            "--profile=none",
            "--workflow-profile=none",
            "--scheduler=greedy",
            "--logger=axzoo",
            "--rerun-incomplete",
            "--nolock",
        ]


def _in_options(message: str) -> str:
    """What is wrong in the matrix, said of the options it was written from."""

    def option(found: re.Match[str]) -> str:
        return f"--{_OPTIONS.get(found[1], found[1])}: "

    return re.sub(
        rf"^.*{re.escape(MATRIX)}:\d+: models\.[^:]+\.(\w+)(?:\[\d+\])?: ", option, message, flags=re.MULTILINE
    )


@contextmanager
def open_project(folder: Path) -> Iterator[Project]:
    """The project in `folder`, which is made if need be. Raises AxzooError when another `llm_build` is at work in it.

    Snakemake inherits the lock: it is held until the last process of the build is gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unprotected = "do not start two llm_build with one --work_path at once, they would not notice each other"
    try:
        lock = lock_file(folder / "lock", unprotected, wait=False)
    except BlockingIOError:
        raise AxzooError(
            f"another llm_build is at work in {folder}: wait for it, or give this one another --work_path"
        ) from None
    try:
        yield Project(folder.resolve(), lock.fd)
    finally:
        lock.close()
