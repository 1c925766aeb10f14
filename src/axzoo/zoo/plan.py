"""What the Snakefile asks of the matrix: builds by wildcards, the arguments of every job, fingerprints of our code.

Imported while the Snakefile is parsed, so nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from axzoo.errors import AxzooError
from axzoo.fingerprint import fingerprint
from axzoo.zoo.build import Build
from axzoo.zoo.load import load_zoo


@dataclass(frozen=True)
class Plan:
    """The builds that `all` makes, those of the demo, and jobs looked up by Snakemake's wildcards."""

    wanted: tuple[Build, ...]
    demo: tuple[Build, ...]

    @cached_property
    def _builds(self) -> dict[Path, Build]:
        return {build.bundle: build for build in (*self.wanted, *self.demo)}

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
    def stems(self) -> list[str]:
        """What layer and post files are called before their number."""
        files = {build.layer_template.partition("_l%d")[0] for build in self._builds.values()}
        return sorted(files | {build.model_type for build in self._builds.values()})

    def model(self, wildcards: Any) -> Build:
        """Any build of the model: builds of one model share source, type and layer count."""
        return self._models[wildcards.model]

    def build(self, wildcards: Any) -> Build:
        """The build whose folder the wildcards name. Raises AxzooError when the matrix does not list it."""
        bundle = Path("results", wildcards.chip, f"{wildcards.model}-{wildcards.tag}")
        if bundle not in self._builds:
            raise AxzooError(f"{bundle} is not a build of the matrix; it has: {', '.join(map(str, self._builds))}")
        return self._builds[bundle]

    def lock_code(self, wildcards: Any) -> str:
        return fingerprint("axzoo.checkpoint.lock", f"axzoo.families.{self.model(wildcards).model_type}")

    @property
    def compile_code(self) -> str:
        return fingerprint("axzoo.backends.host")

    @property
    def embed_code(self) -> str:
        return fingerprint("axzoo.compile.embed")

    @property
    def bundle_code(self) -> str:
        return fingerprint("axzoo.bundle")

    @property
    def check_layers_code(self) -> str:
        return fingerprint("axzoo.commands.check_layers")

    @property
    def check_generation_code(self) -> str:
        return fingerprint("axzoo.commands.check_generation")


def make_plan(matrices: Sequence[str | Path], demo: str | Path) -> Plan:
    """Reads the matrix files. Raises AxzooError for what is wrong in them, or between them."""
    wanted = [build for path in matrices for build in load_zoo(Path(path)).builds()]
    demo_builds = load_zoo(Path(demo)).builds()
    bundles: dict[Path, Build] = {}
    models: dict[str, Build] = {}
    for build in [*wanted, *demo_builds]:
        if bundles.setdefault(build.bundle, build) != build:
            raise AxzooError(f"two matrices describe {build.bundle} differently: rename one of the models")
        if models.setdefault(build.model, build).model_facts != build.model_facts:
            raise AxzooError(f"two matrices describe model {build.model} differently: rename one of the two")
    return Plan(tuple(dict.fromkeys(wanted)), demo_builds)
