"""The backend pulsar2: runs the vendor's compiler, `pulsar2 llm_build`, on slices of the checkpoint.

The compiler takes a whole checkpoint. A job writes a small one with its layers, or with the post layer, runs the
compiler in a private folder, and proves that the files are complete before they enter the store. See docs/vendor.md.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from axzoo.backends import Backend, LockedFile, Needs, Order, job_minutes
from axzoo.backends.pulsar2.options import Tool
from axzoo.backends.pulsar2.settings import Settings, read_settings
from axzoo.backends.pulsar2.tool import find_tool
from axzoo.core.errors import AxzooError
from axzoo.core.fingerprint import fingerprint
from axzoo.parts.groups import ShapeGroup
from axzoo.parts.kind import PartKind
from axzoo.parts.kinds import kind_of
from axzoo.weights.recipe import Recipe

if TYPE_CHECKING:
    from axzoo.backends.pulsar2.slice_checkpoint import Slice

logger = logging.getLogger(__name__)

_MODEL_TYPES = ("chatglm", "llama", "minicpm", "phi3", "qwen2", "qwen3")
"""The families that the vendor's tool is known to build, and whose layers do not depend on their number."""

_UNSLICEABLE = {
    "minicpmv": "its vision model can only be built from the whole checkpoint",
    "smollm3": "whether a layer rotates queries and keys depends on its number, which a slice changes",
}
"""Reasons for other families; without one, the vendor's tool is not known to build them."""

_BASE_MB, _MB_PER_MILLION = 6000, 40
"""The vendor builds Qwen3-0.6B with 6 GB of memory and swap space. Not measured for other sizes."""

_START_SECONDS, _SECONDS_PER_MILLION = 60, 4.0
"""For one part. Published builds take 20 to 40 s to start, and 1 s per million weights of a layer."""

_UNKNOWN = 240_000_000
"""Parameters of a part of unknown size: a layer with hidden_size 4096."""


@dataclass(frozen=True)
class Pulsar2Backend(Backend):
    """Runs the compiler that `compiler` names. Without settings, it can only check files and refuse builds."""

    name: ClassVar[str] = "pulsar2"
    runs_here: ClassVar[bool] = False
    takes_compiler: ClassVar[bool] = True
    proves_weights: ClassVar[bool] = True

    compiler: Settings | None = None

    def settings(self, compiler: str | Mapping[str, Any] | None) -> str:
        return read_settings(compiler).to_json()

    def configured(self, settings: str) -> Self:
        return type(self)(read_settings(settings) if settings else None)

    def job_settings(self) -> str:
        tool, version, build = self._planned()
        return self._compiler.stating(tool, version, build).to_json()

    @property
    def _compiler(self) -> Settings:
        return read_settings(None) if self.compiler is None else self.compiler

    def _planned(self) -> tuple[str, str, str]:
        """Tool, version and build: those that the settings state, else the compiler is asked."""
        settings = self._compiler
        if settings.version:
            return settings.tool or "llm_build", settings.version, settings.build
        tool = find_tool(settings)
        return tool.name, tool.version, tool.build

    def identity(self, kind: PartKind, chip: str) -> dict[str, Any]:
        tool, version, build = self._planned()
        settings = self._compiler
        return {
            "code": fingerprint("axzoo.backends.pulsar2.slice_checkpoint", "axzoo.backends.pulsar2.options"),
            "chip": chip,
            "tool": tool,
            "version": version,
            "build": build,
            "options": list(settings.options),
            "environment": dict(settings.environment),
        }

    def refusal(self, model_type: str, chip: str, recipe: Recipe) -> str | None:
        if model_type not in _MODEL_TYPES:
            reason = _UNSLICEABLE.get(model_type, "the vendor's tool is not known to build this model_type")
            return f"model_type {model_type}: {reason}: use backend host"
        for key, only in (("weight_group_size", 0), ("scale_rule", "vendor"), ("rounding", "nearest")):
            if getattr(recipe, key) != only:
                return f"{key} {getattr(recipe, key)}: the compiler chooses scales and codes itself: use {key} {only}"
        return None

    def needs(self, kind: PartKind, recipe: Recipe, parameters: int | None, parts: int = 1) -> Needs:
        known, stated = _UNKNOWN if parameters is None else parameters, self.compiler
        start = math.ceil(_START_SECONDS * parts / 60)
        minutes = start + job_minutes(known * parts, _SECONDS_PER_MILLION)
        memory = round(_BASE_MB + _MB_PER_MILLION * known / 1e6)
        return Needs((stated and stated.memory_mb) or memory, (stated and stated.minutes) or minutes)

    def compile(self, orders: Iterable[Order], folder: Path) -> Iterator[Mapping[str, Any]]:
        """Compiles all layers in one run, because a run takes half a minute to start; the post layer in another."""
        tool = find_tool(self._compiler)
        waiting = list(orders)
        for name in dict.fromkeys(order.part.kind for order in waiting):
            batch = [order for order in waiting if order.part.kind == name]
            yield from self._compile(tool, batch, folder / f"run_{name}")

    def _compile(self, tool: Tool, orders: list[Order], folder: Path) -> Iterator[Mapping[str, Any]]:
        from axzoo.backends.pulsar2 import slice_checkpoint

        kind = kind_of(orders[0].part.kind)
        if kind.name == "layer":
            checkpoint = slice_checkpoint.write_layers(orders, folder / "input")
        elif kind.name == "post":
            checkpoint = slice_checkpoint.write_post(orders[0], folder / "input")
        else:
            raise AxzooError(f"backend pulsar2 does not compile parts of kind {kind.name!r}")
        files = self._run(tool, kind, orders, checkpoint, folder)
        about = {"tool": tool.name, "version": tool.version, "environment": dict(self._compiler.environment)}
        for order, (file, _) in zip(orders, files, strict=True):
            shutil.move(file, order.output)
        shutil.rmtree(folder, ignore_errors=True)
        for _, of_file in files:
            yield {"compiler": about, **of_file}

    def _run(
        self, tool: Tool, kind: PartKind, orders: list[Order], checkpoint: Slice, folder: Path
    ) -> list[tuple[Path, dict[str, Any]]]:
        """Runs the compiler on a slice. Returns its files in the order of `orders`, with what to record about each.

        Raises AxzooError, with a remedy if the reason is known, when a file is missing or not what was ordered.
        """
        from axzoo.backends.pulsar2 import proof, running
        from axzoo.backends.pulsar2.options import options_for
        from axzoo.backends.pulsar2.tool import inside, launch, prepare_home, return_files

        settings, recipe = self._compiler, orders[0].recipe
        prepare_home(settings, folder)
        output = folder / "output"
        output.mkdir()
        is_post = kind.name == "post"
        options = options_for(tool, recipe, orders[0].chip, is_post, settings.options)
        paths = ["--input_path", inside(settings, folder, checkpoint.folder)]
        paths += ["--output_path", inside(settings, folder, output)]
        parameters = [sum(math.prod(shape) for shape in order.shapes.values() if len(shape) == 2) for order in orders]
        needs = self.needs(kind, recipe, max(parameters), len(orders))
        start = launch(settings, [*settings.verb(tool.name), *paths, *options], folder, needs.mem_mb)
        model_type = checkpoint.spec.model_type
        files = [output / kind.file_name(model_type, recipe, None if is_post else i) for i in range(len(orders))]
        logger.info(f"{settings.shown}: {tool.name} {tool.version}: {' '.join(options)}")
        limits = running.RunLimits(60.0 * needs.minutes, needs.mem_mb)
        try:
            outcome = running.run(start, folder, limits, lambda: all(map(proof.is_whole, files)))
        except OSError as error:
            raise AxzooError(f"{settings.shown} cannot be run: {error.strerror}: see `axzoo doctor`") from None
        finally:
            return_files(settings, folder)
        names = ", ".join(order.part.name for order in (orders[0], orders[-1])[: len(orders)])
        printed = proof.printed_config(outcome.log)
        if printed is None:
            logger.warning("the compiler printed no Config(...), so what it read is not compared with the model")
        elif not proof.is_comparable(printed, checkpoint.spec):
            logger.warning("the Config(...) that the compiler printed has no field of the model to compare it with")
        for difference in proof.config_differences(printed or {}, checkpoint.spec):
            raise AxzooError(f"{names}: {settings.shown} read another model: {difference}: {_REPORT}")
        found = list(self._problems(files, kind, orders, parameters))
        if found or not outcome.said_done:
            raise AxzooError(f"{names}: {settings.shown} failed: {proof.explain(outcome, settings, found)}")
        if outcome.status:
            logger.warning(f"the compiler ended with exit status {outcome.status} after it had written everything")
        return [(file, self._about(file, options)) for file in files]

    def _problems(self, files: list[Path], kind: PartKind, orders: list[Order], parameters: list[int]) -> Iterator[str]:
        """What is wrong with the files of a run."""
        from axzoo.backends.pulsar2.proof import contradictions

        for file, order, number in zip(files, orders, parameters, strict=True):
            if not file.is_file() or file.is_symlink():
                others = sorted(path.name for path in file.parent.glob("*"))[:5]
                yield f"there is no {file.name}; its folder has {', '.join(others) or 'no files'}"
                continue
            groups = kind.groups(order.spec, order.recipe)
            yield from contradictions(file, kind, groups, kind.weight_type(order.recipe), number, {})

    @staticmethod
    def _about(file: Path, options: tuple[str, ...]) -> dict[str, Any]:
        from axzoo.backends.host.inspection import inspect_file
        from axzoo.backends.pulsar2.proof import is_host_file

        if is_host_file(file):
            header = inspect_file(file).header
            return {} if header is None else dict(header.about)
        return {"options": list(options)}

    def contradictions(
        self, path: Path, kind: PartKind, groups: tuple[ShapeGroup, ...], chip: str, about: Mapping[str, Any]
    ) -> Iterator[str]:
        from axzoo.backends.pulsar2 import proof

        weight_type = str(about.get("weight_type", ""))
        yield from proof.contradictions(path, kind, groups, weight_type, None, about)

    def weight_verdicts(self, files: Sequence[LockedFile], checkpoint: Path) -> Mapping[str, Mapping[str, Any]]:
        from axzoo.backends.pulsar2.proof import is_host_file
        from axzoo.backends.pulsar2.vendor_folder import LockedWeights, VendorPart, prove_parts

        if all(is_host_file(file.path) for file in files):
            unknown = "axzoo's own compiler wrote it in the place of the vendor's: no weight table to compare"
            return {file.path.name: {"faults": [], "unknown": [unknown]} for file in files}
        parts = [VendorPart(file.path, file.part.id.index, file.weight_type) for file in files]
        model = LockedWeights([file.part for file in files], checkpoint)
        return {proof.file: proof.to_dict() for proof in prove_parts(parts, model)}

    def doctor(self, chip: str, folder: Path) -> Iterator[tuple[str, str]]:
        from axzoo.backends.pulsar2.diagnosis import diagnose

        yield from diagnose(self._compiler, chip, folder)


_REPORT = "please report this with the job's log"

BACKEND = Pulsar2Backend()
