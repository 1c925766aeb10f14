"""Forecasts of a matrix's builds, and of models that are in no matrix: which sizes they have, and what jobs they need.

Snakemake imports this module while planning, so it must not import numpy before a config.json is read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from axzoo.backends import DEFAULT, load_backend
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json
from axzoo.fetch.sources import FolderSource, HubSource
from axzoo.forecast.estimate import Forecast, Interval, make_forecast
from axzoo.forecast.sizes import Anatomy, anatomy_of_sizes, anatomy_of_spec, parameters, stored_bytes
from axzoo.matrix.build import Build
from axzoo.matrix.outlook import known_spec, recipe_problem
from axzoo.matrix.resources import level_1_weights, part_needs, stage_needs
from axzoo.model.spec import MAX_LAYERS, DecoderSpec
from axzoo.parts.kinds import KINDS
from axzoo.weights.recipe import Recipe

MAX_LINES = 3
"""If a plan has more builds, their forecasts are not listed."""

USUAL_PROMPT = 128


@dataclass(frozen=True)
class Subject:
    """A model to forecast: its sizes, and its spec if its config.json was read. `bytes_per_weight` is that of the
    checkpoint, `recipe` the one that the matrix gives."""

    name: str
    anatomy: Anatomy
    spec: DecoderSpec | None = None
    recipe: Recipe | None = None
    bytes_per_weight: int = 2

    def forecast(
        self, recipe: Recipe, chip: str, chip_memory_mb: int, host: Any = "onchip", prompt: int = USUAL_PROMPT
    ) -> Forecast:
        """The forecast of a build. Raises AxzooError when the recipe or the prompt exceeds what the model supports."""
        if self.spec is not None and (problem := recipe_problem(self.spec, recipe)):
            raise AxzooError(f"{self.name}: {problem}")
        found = make_forecast(self.anatomy, recipe, chip, chip_memory_mb, host, prompt)
        return replace(found, download_mb=round(self.bytes_per_weight * self.anatomy.checkpoint / 1e6))


# Where sizes come from


def subject_of_build(build: Build) -> Subject | None:
    """The model of a build: from its config.json if that is on this machine, else from the matrix; None if the matrix
    has no `sizes` either. Raises AxzooError when the config.json is not supported."""
    if isinstance(build.source, FolderSource) and build.model_config is None:
        folder = Path(build.source.path)
        if (folder / "config.json").is_file():  # the weights may be missing
            found = subject_of_path(folder, build.ignore_config_keys)
            return replace(found, name=build.model, recipe=build.recipe)
    spec = known_spec(build)
    if spec is not None:
        return Subject(build.model, anatomy_of_spec(spec), spec, build.recipe)
    if not build.sizes:
        return None
    return Subject(build.model, anatomy_of_sizes(build, dict(build.sizes)), None, build.recipe)


def subject_of_path(path: Path, ignored: Collection[str] = ()) -> Subject:
    """The model of a config.json, a checkpoint folder, or a GGUF file, whose weights are not read."""
    if path.suffix == ".gguf":
        from axzoo.checkpoint.gguf.conversion import model_config
        from axzoo.checkpoint.gguf.reader import GgufCheckpoint

        return _subject(path.stem, model_config(GgufCheckpoint(path)), path, ignored)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise AxzooError(f"{path} has no config.json: give the path of a checkpoint folder or of a config.json")
    return _subject(path.name if path.is_dir() else str(path), read_json(file), file, ignored)


def subject_of_repository(repo: str, revision: str, ignored: Collection[str] = ()) -> Subject:
    """The model of a hub repository, of which only config.json is downloaded, unless the hub's cache has it."""
    from axzoo.fetch.hub import read_hub_config

    return _subject(repo, read_hub_config(HubSource(repo, revision)), Path(f"config.json of {repo}"), ignored)


def _subject(name: str, config: Any, path: Path, ignored: Collection[str]) -> Subject:
    from axzoo.model.reading import spec_of
    from axzoo.model.text_parts import language_model_config

    if not isinstance(config, dict):
        raise AxzooError(f"{path} is not a JSON object")
    config = language_model_config(config, path)
    layers = max(
        (config[key] for key in ("num_hidden_layers", "num_layers") if type(config.get(key)) is int), default=0
    )
    if layers > MAX_LAYERS:
        raise AxzooError(f"{path}: num_hidden_layers {layers} is not plausible: at most {MAX_LAYERS} are")
    spec = spec_of(config, path, ignored)
    try:
        anatomy = anatomy_of_spec(spec)
    except AxzooError as error:
        raise AxzooError(f"{path}: {error}") from None
    stored = str(config.get("dtype") or config.get("torch_dtype") or "")
    return Subject(name, anatomy, spec, None, 4 if stored.removeprefix("torch.") == "float32" else 2)


_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find_subject(target: str, builds: Sequence[Build], revision: str, ignored: Collection[str] = ()) -> Subject:
    """The model that a word of the command line names: a path, a model of the matrix, or a hub repository.

    Raises AxzooError when there is no such model, or its config.json is not supported.
    """
    path = Path(target)
    if path.exists():
        return subject_of_path(path, ignored)
    for build in builds:
        if build.model == target:
            found = subject_of_build(build)
            if found is None:
                raise AxzooError(f"{target} is not fetched, and the matrix has no sizes for it: add them")
            return found
    if _HUB_ID.fullmatch(target):
        return subject_of_repository(target, revision, ignored)
    close = difflib.get_close_matches(target, [build.model for build in builds], n=1)
    hint = f"did you mean {close[0]}?" if close else "give a path, a model of the matrix, or ORG/NAME of a repository"
    raise AxzooError(f"{target} is neither a file nor a model of the matrix: {hint}")


def usual_recipe(subject: Subject, weight_type: Any, context: int | None, prompt: int) -> Recipe:
    """The matrix's recipe with another weight type; or for a cache of `context` tokens, and for models without matrix,
    prefill groups of 128 tokens for the prompt, but at least for 1024 tokens if the cache is that long."""
    base = subject.recipe or Recipe()
    if not weight_type.startswith("s"):
        base = replace(base, weight_group_size=0, scale_rule="vendor", rounding="nearest")
    if subject.recipe is not None and context is None and prompt <= (base.max_prompt_len or base.kv_cache_len):
        return replace(base, weight_type=weight_type)
    cache = context or base.kv_cache_len
    chunk = min(128, cache)
    groups = min(max(-(-prompt // chunk), 1024 // chunk), cache // chunk)
    past = tuple(chunk * group for group in range(1, groups))
    return replace(base, weight_type=weight_type, kv_cache_len=cache, prefill_len=chunk, last_kv_cache_len=past)


# Jobs


@dataclass(frozen=True)
class JobOutlook:
    """What building a model takes: minutes on one core of this machine with axzoo's backend, and the memory of the
    largest job in MB; minutes of one worker of the vendor's compiler, and its memory."""

    minutes: Interval
    memory_mb: int
    vendor_minutes: Interval
    vendor_memory_mb: int


SECONDS, SECONDS_PER_MILLION = 10.0, 0.1
"""A build with its checks on one core: measured for SmolLM2-135M and single layers of up to 8B models
(docs/performance.md)."""

VENDOR_LAYER_SECONDS, VENDOR_SECONDS_PER_MILLION = 45.0, 0.95
"""The vendor's compiler: between 49 and 101 s for layers of 15 million weights, 256 s for one of 233 million; post
layers take about as long per weight (published logs)."""

VENDOR_MEMORY_MB = 32_000
"""The memory that the vendor's documentation asks for."""


def job_outlook(anatomy: Anatomy, recipe: Recipe) -> JobOutlook:
    """What building with the default backend and with the vendor's compiler takes, within a factor of two."""
    backend, sizes = load_backend(DEFAULT), anatomy.sizes
    weights = parameters(anatomy, recipe, sizes)
    kinds = [kind for kind in KINDS if kind.is_built(recipe) and kind.ids(anatomy)]
    jobs = [part_needs(kind, recipe, backend, sizes) for kind in kinds]
    jobs += [
        stage_needs("lock", weights),
        stage_needs("check_layers", weights, held=level_1_weights(sizes)),
        stage_needs("check_generation", weights, held=stored_bytes(recipe, anatomy, sizes)),
    ]
    vendor = anatomy.num_hidden_layers + 1
    vendor_seconds = vendor * VENDOR_LAYER_SECONDS + VENDOR_SECONDS_PER_MILLION * weights / 1e6
    return JobOutlook(
        minutes=_within_two((SECONDS + SECONDS_PER_MILLION * weights / 1e6) / 60),
        memory_mb=max(job.mem_mb for job in jobs),
        vendor_minutes=_within_two(vendor_seconds / 60),
        vendor_memory_mb=VENDOR_MEMORY_MB,
    )


def _within_two(value: float) -> Interval:
    return Interval(value / 2, value, value * 2)


# Lines for plans and reports


def forecast_line(build: Build) -> str | None:
    """The forecast of a build in one line; None if its sizes are not known or its config.json is refused elsewhere."""
    try:
        subject = subject_of_build(build)
        if subject is None:
            return None
        prompt = min(USUAL_PROMPT, build.recipe.max_prompt_len or build.recipe.kv_cache_len)
        found = subject.forecast(build.recipe, build.chip, build.npu_memory_mb, prompt=prompt)
    except AxzooError:
        return None
    speed = "speed not known for this chip"
    if found.tok_s is not None and found.ttft_ms is not None:
        speed = (
            f"about {number(found.tok_s.value)} tok/s ({number(found.tok_s.low)} to {number(found.tok_s.high)}), "
            f"{number(found.ttft_ms.value)} ms to the first token"
        )
    tight = ", which is tight" if found.fits == "tight" else ""
    return f"{speed}, {found.memory.total_mb} of {found.chip_memory_mb} MB{tight}, {found.flash_mb} MB of files"


def plan_lines(builds: Iterable[Build]) -> Iterator[str]:
    """The forecasts of a plan's builds, or how to see them if there are many."""
    builds = list(builds)
    if len(builds) > MAX_LINES:
        yield f"forecast of {len(builds)} builds: `axzoo forecast MATRIX` lists speed and memory of each"
        return
    for build in builds:
        if line := forecast_line(build):
            yield f"forecast: {build.name} on {build.chip}: {line}"


def number(value: float) -> str:
    """Three digits, or all before the decimal point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
