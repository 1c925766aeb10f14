"""What the Snakefile needs from the matrix: builds by wildcards, arguments of jobs, and code fingerprints.

The Snakefile imports this module, so it must not import anything slow.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from axzoo.bundle.bundle_receipt import bundle_code
from axzoo.core.errors import AxzooError
from axzoo.core.fingerprint import fingerprint
from axzoo.matrix.batches import PartRule, part_rules
from axzoo.matrix.build import Build
from axzoo.matrix.chips import ChipTable
from axzoo.matrix.comparison import Comparison
from axzoo.matrix.entries import load_zoo
from axzoo.matrix.lock_state import lock_code
from axzoo.parts.kinds import KINDS
from axzoo.parts.receipt import calibrate_code

MAX_REASONS = 3
"""If more builds are left out, they are counted instead of listed."""


STORE = "results/store"


@dataclass(frozen=True)
class Plan:
    """The builds of the rules `all` and `demo`, with lookup by Snakemake wildcards.

    `left_out` contains the builds that do not fit their chip, to report the reason if one of them is requested.
    """

    wanted: tuple[Build, ...]
    demo: tuple[Build, ...]
    left_out: tuple[Build, ...]
    chip_table: ChipTable
    layers_per_job: int | None = None  # None: depends on the model's sizes
    store: str = STORE  # a folder, absolute or relative to the project's root

    @property
    def left_out_lines(self) -> list[str]:
        """Messages about builds that are left out: one for each, or only their number if there are many."""
        from axzoo.matrix.preflight import misfit_with_advice  # imports numpy, and few plans need it

        if len(self.left_out) <= MAX_REASONS:
            return [f"left out: {misfit_with_advice(build, self.chip_table)}" for build in self.left_out]
        known = len(self.wanted) + len(self.left_out)
        return [
            f"left out: {len(self.left_out)} of {known} builds, which do not fit their chip's memory: "
            f"`axzoo report MATRIX` lists the reasons"
        ]

    @cached_property
    def _builds(self) -> dict[tuple[str, str, str], Build]:
        """All builds by chip, model and tag. A dict, because every job looks up its build several times."""
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
        """The rules that build parts."""
        return part_rules(self._builds.values(), self.layers_per_job)

    @property
    def stems(self) -> list[str]:
        """The possible starts of file names, for the wildcard `stem`."""
        builds = self._builds.values()
        found = {kind.stem(build.model_type, build.recipe) for build in builds for kind in KINDS}
        return sorted(found - {""})

    def builds_of(self, model: str) -> list[Build]:
        """All builds of a model that fit their chip."""
        return [build for build in self._builds.values() if build.model == model and build.misfit is None]

    def model(self, wildcards: Any) -> Build:
        """Any build of the model, for settings that all of its builds share."""
        return self._models[wildcards.model]

    def build(self, wildcards: Any) -> Build:
        """The build that the wildcards identify. Raises AxzooError when it is not in the matrix or does not fit its
        chip."""
        build = self._builds.get((wildcards.chip, wildcards.model, wildcards.tag))
        if build is None:
            bundle = Path("results", wildcards.chip, f"{wildcards.model}-{wildcards.tag}")
            raise AxzooError(f"{bundle} is not a build of the matrix: `axzoo report` lists its builds")
        if build.misfit is not None:
            raise AxzooError(f"{build.bundle} is left out: {build.misfit}")
        return build

    def build_with(self, wildcards: Any, file: str) -> Build:
        """Like `build`. Also raises AxzooError when the build has no part file with this name."""
        build = self.build(wildcards)
        if file not in build.parts:
            names = list(build.parts)
            raise AxzooError(f"{build.bundle} has no file {file}: its files are {names[0]} to {names[-1]}")
        return build

    def comparison(self) -> Comparison:
        """A new comparison of the results with their receipts."""
        return Comparison(self._builds.values())

    def is_locked(self, model: str, comparison: Comparison) -> bool:
        """Whether the model's lock is complete and up to date."""
        return comparison.is_locked(self._models[model])

    def lock_code(self, wildcards: Any) -> str:
        return lock_code(self.model(wildcards).model_type)

    @property
    def calibrate_code(self) -> str:
        return calibrate_code()

    @property
    def bundle_code(self) -> str:
        return bundle_code()

    @property
    def check_layers_code(self) -> str:
        return fingerprint("axzoo.commands.check_layers")

    @property
    def check_vision_code(self) -> str:
        return fingerprint("axzoo.commands.check_vision")

    @property
    def check_weights_code(self) -> str:
        return fingerprint("axzoo.commands.check_weights", "axzoo.backends.pulsar2.vendor_folder")

    @property
    def check_generation_code(self) -> str:
        return fingerprint("axzoo.commands.check_generation")


def make_plan(matrices: Sequence[str | Path], demo: str | Path, config: Mapping[str, Any] | None = None) -> Plan:
    """Reads the matrix files and, if it exists, the file `demo`. `config` is Snakemake's `--config`, which accepts only
    the machine-specific settings layers_per_job and store.

    Raises AxzooError when a matrix is not valid, matrices contradict each other, or no build fits its chip.
    """
    _refuse_targets(matrices)
    zoos = [load_zoo(Path(path)) for path in matrices]
    demos = [load_zoo(Path(demo))] if Path(demo).exists() else []
    wanted = tuple(dict.fromkeys(build for zoo in zoos for build in zoo.builds()))
    left_out = tuple(dict.fromkeys(build for zoo in (*zoos, *demos) for build in zoo.left_out()))
    if not wanted:
        reasons = "\n".join(str(build.misfit) for build in left_out)
        raise AxzooError(f"nothing to build: no build of the matrix fits its chip\n{reasons}")
    in_demo = tuple(build for zoo in demos for build in zoo.builds())
    plan = Plan(wanted, in_demo, left_out, zoos[0].chip_table, *_machine_settings(config or {}))
    bundles: dict[Path, Build] = {}
    models: dict[str, Build] = {}
    for build in (*plan.wanted, *plan.demo, *plan.left_out):
        if bundles.setdefault(build.bundle, build) != build:
            raise AxzooError(f"two matrices describe {build.bundle} differently: rename one of the models")
        if models.setdefault(build.model, build).model_facts != build.model_facts:
            raise AxzooError(f"two matrices describe model {build.model} differently: rename one of the models")
    return plan


def _refuse_targets(matrices: Sequence[str | Path]) -> None:
    """Raises AxzooError when one of several matrix files is a target, because Snakemake's `--configfile` takes all
    words up to the next option."""
    names = [os.path.relpath(path) for path in matrices]
    targets = [name for name in names[1:] if Path(name).suffix not in (".yaml", ".yml")]
    if targets:
        files = " ".join(name for name in names if name not in targets)
        raise AxzooError(
            f"{targets[0]} is not a matrix, but --configfile takes all words that follow it: put targets first, as in "
            f"`snakemake {' '.join(targets)} --configfile {files}`"
        )


def _machine_settings(config: Mapping[str, Any]) -> tuple[int | None, str]:
    match {"layers_per_job": None, "store": STORE} | dict(config):
        case {"layers_per_job": None, "store": str(store), **rest} if not rest and store:
            return None, store
        case {"layers_per_job": int(number), "store": str(store), **rest} if (
            not rest and store and number >= 1 and number is not True
        ):
            return number, store
    given = " ".join(f"{key}={value}" for key, value in config.items())
    raise AxzooError(
        f"--config {given}: --config accepts only layers_per_job=N (at least 1) and store=DIR: put other settings in a "
        f"matrix file and pass it with --configfile"
    )
