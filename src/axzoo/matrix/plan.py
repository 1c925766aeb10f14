"""What the Snakefile asks of the matrix: builds by wildcards, the arguments of every job, fingerprints of our code.

Imported while the Snakefile is parsed, so nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.core.fingerprint import fingerprint
from axzoo.matrix.batches import PartRule, part_rules
from axzoo.matrix.build import Build
from axzoo.matrix.entries import load_zoo
from axzoo.matrix.lock_state import is_locked, lock_code
from axzoo.parts.kinds import KINDS

MOST_REASONS = 3
"""Builds left out whose reasons are given one by one."""


STORE = "results/store"


@dataclass(frozen=True)
class Plan:
    """The builds that `all` makes, those of the demo, and jobs looked up by Snakemake's wildcards.

    `left_out` are known too, so that asking for one of them is answered with the reason.
    """

    wanted: tuple[Build, ...]
    demo: tuple[Build, ...]
    left_out: tuple[Build, ...]
    layers_per_job: int | None = None  # None: by the model's sizes
    store: str = STORE  # a folder; relative ones lie in the project's root

    @property
    def left_out_lines(self) -> list[str]:
        """What a user should know of `left_out` before the build: each one's reason, or, of many, how many they are."""
        if len(self.left_out) <= MOST_REASONS:
            return [f"left out: {build.misfit}" for build in self.left_out]
        known = len(self.wanted) + len(self.left_out)
        return [
            f"left out: {len(self.left_out)} of {known} builds, which do not fit their chip's memory: "
            f"`axzoo report MATRIX` lists them with their numbers"
        ]

    @cached_property
    def _builds(self) -> dict[tuple[str, str, str], Build]:
        """By chip, model and tag: every job of a plan looks its build up several times."""
        return {(build.chip, build.model, build.tag): build for build in (*self.wanted, *self.demo, *self.left_out)}

    @cached_property
    def _models(self) -> dict[str, Build]:
        return {build.model: build for build in self._builds.values()}

    @property
    def chips(self) -> list[str]:
        return sorted({build.chip for build in self._builds.values()})

    @property
    def models(self) -> list[str]:
        return list(self._models)

    @property
    def tags(self) -> list[str]:
        return sorted({build.tag for build in self._builds.values()})

    @property
    def part_rules(self) -> list[PartRule]:
        """The rules that build parts: which parts share a job, in which models."""
        return part_rules(self._builds.values(), self.layers_per_job)

    @property
    def stems(self) -> list[str]:
        """How the names of the parts' files begin."""
        builds = self._builds.values()
        found = {kind.stem(build.model_type, build.recipe) for build in builds for kind in KINDS}
        return sorted(found - {""})

    def model(self, wildcards: Any) -> Build:
        """Any build of the model: builds of one model share source, type and layer count."""
        return self._models[wildcards.model]

    def build(self, wildcards: Any) -> Build:
        """The build whose folder the wildcards name. Raises AxzooError when the matrix does not list or the chip
        not hold it."""
        build = self._builds.get((wildcards.chip, wildcards.model, wildcards.tag))
        if build is None:
            bundle = Path("results", wildcards.chip, f"{wildcards.model}-{wildcards.tag}")
            raise AxzooError(f"{bundle} is not a build of the matrix; `axzoo report` lists what it has")
        if build.misfit is not None:
            raise AxzooError(f"{build.bundle} is left out: {build.misfit}")
        return build

    def build_with(self, wildcards: Any, file: str) -> Build:
        """Like `build`, for one of its files. Raises AxzooError when the build has no file of that name."""
        build = self.build(wildcards)
        if file not in build.parts:
            names = list(build.parts)
            raise AxzooError(f"{build.bundle} has no {file}: its files are {names[0]} to {names[-1]}")
        return build

    def is_locked(self, model: str) -> bool:
        """Whether the model's lock is there, and what it would be if it were made again."""
        return is_locked(self._models[model])

    def lock_code(self, wildcards: Any) -> str:
        return lock_code(self.model(wildcards).model_type)

    @property
    def calibrate_code(self) -> str:
        return fingerprint("axzoo.calibrate.states", "axzoo.calibrate.tokens")

    @property
    def bundle_code(self) -> str:
        return fingerprint("axzoo.bundle.completion")

    @property
    def check_layers_code(self) -> str:
        return fingerprint("axzoo.commands.check_layers")

    @property
    def check_generation_code(self) -> str:
        return fingerprint("axzoo.commands.check_generation")


def make_plan(matrices: Sequence[str | Path], demo: str | Path, config: Mapping[str, Any] | None = None) -> Plan:
    """Reads the matrix files; a project without the file `demo` has no demo. `config` is what `--config` says: only
    layers_per_job and store, which belong to the machine that builds and not to the zoo.

    Raises AxzooError for what is wrong in them, or between them.
    """
    zoos = [load_zoo(Path(path)) for path in matrices]
    demos = [load_zoo(Path(demo))] if Path(demo).exists() else []
    wanted = tuple(dict.fromkeys(build for zoo in zoos for build in zoo.builds()))
    left_out = tuple(dict.fromkeys(build for zoo in (*zoos, *demos) for build in zoo.left_out()))
    if not wanted:
        reasons = "\n".join(str(build.misfit) for build in left_out)
        raise AxzooError(f"nothing to build: no build of the matrix fits its chip\n{reasons}")
    in_demo = tuple(build for zoo in demos for build in zoo.builds())
    plan = Plan(wanted, in_demo, left_out, *_of_the_machine(config or {}))
    bundles: dict[Path, Build] = {}
    models: dict[str, Build] = {}
    for build in (*plan.wanted, *plan.demo, *plan.left_out):
        if bundles.setdefault(build.bundle, build) != build:
            raise AxzooError(f"two matrices describe {build.bundle} differently: rename one of the models")
        if models.setdefault(build.model, build).model_facts != build.model_facts:
            raise AxzooError(f"two matrices describe model {build.model} differently: rename one of the two")
    return plan


def _of_the_machine(config: Mapping[str, Any]) -> tuple[int | None, str]:
    match {"layers_per_job": None, "store": STORE} | dict(config):
        case {"layers_per_job": None, "store": str(store), **rest} if not rest and store:
            return None, store
        case {"layers_per_job": int(number), "store": str(store), **rest} if (
            not rest and store and number >= 1 and number is not True
        ):
            return number, store
    said = " ".join(f"{key}={value}" for key, value in config.items())
    raise AxzooError(
        f"--config {said}: --config takes layers_per_job=N, N of 1 or more, and store=DIR alone; write a matrix file "
        f"and name it with --configfile"
    )
