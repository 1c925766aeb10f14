"""The work folder of `llm_build`: a project whose matrix contains a single model, built by Snakemake.

config/ contains the matrix, the chips and copies of the user's files; results/ is as in any project, and all runs share
its store.
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
from axzoo.bundle.bundle_receipt import read_bundle_receipt
from axzoo.core.errors import AxzooError
from axzoo.core.files import canonical_json, read_json, sha256_of, write_json, write_text
from axzoo.core.locks import lock_file
from axzoo.core.stamps import Digests, Stamp
from axzoo.llm_build.output import place_copy
from axzoo.matrix.batches import parts_per_job
from axzoo.matrix.build import Build
from axzoo.matrix.chips import ChipTable, load_chips
from axzoo.matrix.comparison import MEMORY
from axzoo.matrix.entries import load_zoo
from axzoo.matrix.lock_state import MADE_FROM
from axzoo.parts.kinds import kind_of

logger = logging.getLogger(__name__)


CHOICES = Path("config/layers_per_job")
"""Folder in the project with one file per bundle, which records the number of layers per job."""


def choose_layers_per_job(project: Path, build: Build, parallel: int) -> int:
    """The number of layers per job for `parallel` jobs at once.

    If the layers are already built, it is the number they were built with: another number would run their jobs again.
    The model's lock must exist.
    """
    layer = kind_of("layer")
    layers_identity = canonical_json(
        {
            "recipe": build.choices(layer),
            "lock": sha256_of(project / build.locks / MADE_FROM),
            "compiler": build.compiler(layer),
        }
    )
    file = project / CHOICES / f"{build.chip}-{build.name}.json"
    recorded = _read(file)
    if recorded.get("of") == layers_identity and all((project / receipt).exists() for receipt in build.receipt_files):
        return int(recorded["layers_per_job"])
    number = min(parts_per_job(layer.parameters(dict(build.sizes))), math.ceil(build.num_hidden_layers / parallel))
    write_json(file, {"layers_per_job": number, "of": layers_identity})
    return number


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(read_json(file))
    except (AxzooError, TypeError, ValueError):
        return {}


WORKFLOW = Path(axzoo.__file__).parent / "project"
"""Folder with the Snakefile, its rules and config/chips.yaml: symbolic links in a clone, files in a wheel."""

CHIPS = "config/chips.yaml"
MATRIX = "config/zoo.yaml"
MODEL_CONFIG = "config/model_config.json"
CALIBRATION_TEXT = "config/calibration.txt"

_OPTIONS = {"path": "input_path", "chips": "chip"}
"""Matrix keys whose option has a different name."""

_POLL_INTERVAL_S = 0.2

_KEPT = "finished parts are kept"


@dataclass(frozen=True)
class Project:
    """The work folder. `lock` is the file descriptor of its lock, which all processes of the build inherit."""

    folder: Path
    lock: int

    def write_matrix(self, name: str, entry: Mapping[str, Any], override: Mapping[str, Any]) -> Build:
        """Write a matrix with a single entry and return its only build, even if it does not fit its chip.

        `override` becomes the entry's `model_config`. Raises AxzooError when the entry is not valid.
        """
        if override:
            write_json(self.folder / MODEL_CONFIG, override)
            entry = {**entry, "model_config": MODEL_CONFIG}
        write_text(self.folder / CHIPS, (WORKFLOW / CHIPS).read_text())
        write_text(self.folder / MATRIX, yaml.safe_dump({"models": {name: entry}}, sort_keys=False))
        try:
            (build,) = load_zoo(self.folder / MATRIX, self.folder / CHIPS).builds_of(name)
        except AxzooError as error:
            raise AxzooError(_name_options(str(error))) from None
        return build

    @property
    def chips(self) -> ChipTable:
        """All known chips."""
        return load_chips(self.folder / CHIPS)

    def copy_in(self, file: Path, name: str) -> str:
        """Copy a user's file to `name` in the project. An identical copy keeps its mtime."""
        if not file.is_file():
            raise AxzooError(f"{file} is missing")
        place_copy(file, self.folder / name)
        return name

    @contextmanager
    def keeping_digests(self, build: Build) -> Iterator[None]:
        """The block links the bundle's files: the next plan does not need to read them again for that."""
        digests = Digests(self.folder / MEMORY)
        receipt = read_bundle_receipt(self.folder / build.bundle_receipt)
        for record in receipt.files.values() if receipt else ():
            digests.learn(Stamp.from_dict(record), str(record.get("sha256")))
        with digests.unchanged(self.folder / file for file in build.part_files):
            yield
        digests.save()

    def make(
        self,
        targets: Sequence[str | Path],
        jobs: int,
        layers_per_job: int,
        quiet: bool = False,
        on_poll: Callable[[], None] = lambda: None,
    ) -> None:
        """Run Snakemake to make the files `targets` of the project, with up to `jobs` jobs at once.

        With `quiet`, only failures are shown. `on_poll` is called repeatedly while Snakemake runs. Raises AxzooError
        when the build fails, after Snakemake has reported the reason. On an interrupt, waits for the jobs to end.
        """
        # -P prevents imports from the current folder, which may be a checkpoint.
        command = [sys.executable, "-P", "-m", "snakemake", *map(str, targets), *self._options(jobs)]
        command += ["--config", f"layers_per_job={layers_per_job}"]
        command += ["--quiet", "progress"] if quiet else []
        scripts = sysconfig.get_path("scripts")
        environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` stops a build in the same way as Ctrl-C
        process = subprocess.Popen(command, env=environment, pass_fds=[self.lock], process_group=0)
        try:
            while (status := process.poll()) is None:
                on_poll()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_INTERVAL_S)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            logger.warning(f"interrupted; {_KEPT}, and the same command continues the build")
            raise
        if status:
            raise AxzooError(
                f"the build failed, see above; the logs are in {self.folder / 'results/logs'}, those of the checks in "
                f"{self.folder / 'results/checks'}; {_KEPT}"
            )

    def _options(self, jobs: int) -> list[str]:
        """`--nolock`: our own lock protects the folder. Unlike Snakemake's, it does not outlive a killed process."""
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


def _name_options(message: str) -> str:
    """Replace the matrix keys in an error message by the options that they come from."""

    def option(found: re.Match[str]) -> str:
        return f"--{_OPTIONS.get(found[1], found[1])}: "

    return re.sub(
        rf"^.*{re.escape(MATRIX)}:\d+: models\.[^:]+\.(\w+)(?:\[\d+\])?: ", option, message, flags=re.MULTILINE
    )


@contextmanager
def open_project(folder: Path) -> Iterator[Project]:
    """The project in `folder`, which is created if necessary.

    Raises AxzooError when another `llm_build` uses the folder. Snakemake inherits the lock, so it is held until the
    last process of the build has ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unprotected = "do not run two llm_build commands with the same --work_path, because neither would wait"
    try:
        lock = lock_file(folder / "lock", unprotected, wait=False)
    except BlockingIOError:
        raise AxzooError(
            f"another llm_build is running in {folder}: wait for it to end, or use another --work_path"
        ) from None
    try:
        yield Project(folder.resolve(), lock.fd)
    finally:
        lock.close()
