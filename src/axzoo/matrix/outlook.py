"""What is known about builds before they start: missing files, settings beyond the model, and gigabytes to fetch.

Snakemake imports this module while planning, so it reads only small files and needs no network. numpy is imported only
to read the config.json of a checkpoint on this machine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from axzoo.bundle.boards.lengths import host_warnings
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json
from axzoo.fetch.sources import PARTS, RECEIPT, FolderSource, HubSource, is_complete, source_keys
from axzoo.forecast.sizes import parameters
from axzoo.matrix.build import RESULTS, Build
from axzoo.model.spec import DecoderSpec, supported_length
from axzoo.parts.lock_index import INDEX, read_index
from axzoo.weights.recipe import WEIGHT_GROUP_SIZES, Recipe

BYTES_PER_WEIGHT = 2
"""Of bf16 and fp16, in which almost all models are published."""
LEAST_BYTES_PER_WEIGHT = 0.5
"""Of 4-bit weights."""
MAX_NAMES = 3
"""How many models a line about several of them names."""


def refuse_problems(builds: Iterable[Build]) -> None:
    """Raises one AxzooError with a line for each problem of `builds` that is known before they start."""
    problems = list(dict.fromkeys(problem for build in builds for problem in build_problems(build)))
    if problems:
        raise AxzooError("\n".join(problems))


def build_problems(build: Build) -> Iterator[str]:
    """What will make a build fail, as far as it is known without a download: missing files, a config.json that axzoo
    does not support, settings that exceed the model."""
    missing = [
        (key, path)
        for key, path in (
            ("path", build.source.path if isinstance(build.source, FolderSource) else None),
            ("model_config", build.model_config),
            ("calibration_text", build.calibration_text),
        )
        if path is not None and not Path(path).exists()
    ]
    if missing:
        yield from (
            f"models.{build.model}.{key}: {path} does not exist: give the path of an existing "
            + ("checkpoint folder or GGUF file" if key == "path" else "file")
            for key, path in missing
        )
        return
    try:
        spec = known_spec(build)
    except AxzooError as error:
        yield f"models.{build.model}: {error}"
        return
    if spec is not None and (problem := recipe_problem(spec, build.recipe)):
        yield f"models.{build.model}: {problem}"


def host_lines(builds: Iterable[Build]) -> list[str]:
    """A line for each property with which a board's host cannot load the builds, with the models that have it."""
    models: dict[str, dict[str, None]] = {}
    for build in builds:
        for warning in host_warnings(build.recipe):
            models.setdefault(warning, {})[build.model] = None
    return [f"{_names(list(found))}: {warning}" for warning, found in models.items()]


def _names(models: Sequence[str]) -> str:
    shown = ", ".join(models[:MAX_NAMES])
    return shown if len(models) <= MAX_NAMES else f"{shown} and {len(models) - MAX_NAMES} more models"


def known_spec(build: Build) -> DecoderSpec | None:
    """The model's spec, from a checkpoint on this machine, from the lock of a fetched one, or from config.json in the
    hub's cache; None if it is not known.

    Raises AxzooError when there is no checkpoint, or its config is not supported or contradicts the matrix.
    """
    if isinstance(build.source, FolderSource):
        return _local_spec(build, Path(build.source.path))
    if isinstance(build.source, HubSource) and not (build.checkpoint / RECEIPT).exists():
        return _cached_spec(build, build.source)
    if build.model_config is not None:
        return None  # the file may have changed since the lock was made
    if not (build.locks / INDEX).exists() or not is_complete(build.checkpoint, build.source):
        return None
    try:
        index = read_index(build.locks)
    except AxzooError:
        return None  # the lock is made again
    keys = source_keys(build.source)
    return index.spec if {key: index.source.get(key) for key in keys} == keys else None


def _cached_spec(build: Build, source: HubSource) -> DecoderSpec | None:
    from axzoo.fetch.hub_cache import fixed_snapshot

    snapshot = fixed_snapshot(source)
    if snapshot is None or source.file is not None or not (snapshot / "config.json").exists():
        return None
    return _spec_in(build, snapshot)


def _spec_in(build: Build, folder: Path) -> DecoderSpec:
    from axzoo.model.reading import read_spec

    override = None if build.model_config is None else Path(build.model_config)
    return read_spec(folder, build.model_type, build.num_hidden_layers, build.ignore_config_keys, override)


def _local_spec(build: Build, path: Path) -> DecoderSpec | None:
    from axzoo.fetch.folder import local_checkpoint

    found = local_checkpoint(str(path))
    if found.gguf is None:
        return _spec_in(build, path)
    if (build.locks / INDEX).exists() or build.model_config is not None:
        return None  # reading the header of a GGUF file takes too long for each plan
    from axzoo.checkpoint.gguf.conversion import model_config
    from axzoo.checkpoint.gguf.reader import GgufCheckpoint
    from axzoo.model.reading import spec_of

    return spec_of(model_config(GgufCheckpoint(found.gguf)), found.gguf, build.ignore_config_keys)


def recipe_problem(spec: DecoderSpec, recipe: Recipe) -> str | None:
    """What is wrong if the recipe exceeds the model's positions or vocabulary, or its weight group size does not divide
    the input features; starts with the key."""
    supported = supported_length(spec.layer.rope, spec.layer.max_position_embeddings)
    if recipe.positions > supported:
        return (
            f"kv_cache_len {recipe.kv_cache_len} needs {recipe.positions} positions, and the model supports "
            f"{supported} (max_position_embeddings and rope scaling of config.json): lower it"
        )
    if recipe.post_topk > spec.vocab_size:
        return f"post_topk {recipe.post_topk} exceeds the vocabulary of {spec.vocab_size} tokens: lower it"
    widths = sorted({spec.layer.hidden_size, spec.layer.q_size, spec.layer.intermediate_size})
    if recipe.weight_group_size and any(width % recipe.weight_group_size for width in widths):
        fitting = [size for size in WEIGHT_GROUP_SIZES if size and not any(width % size for width in widths)]
        return (
            f"weight_group_size {recipe.weight_group_size} does not divide the input features of every matrix, "
            f"{' and '.join(map(str, widths))}: use {', '.join(map(str, [*fitting, 0]))}"
        )
    return None


def to_fetch(builds: Iterable[Build]) -> str | None:
    """A line that says how much the hub's models take that are not fetched yet, and what is already here; None if all
    are here.

    The size is estimated from the `sizes` of the matrix, because planning needs no network. `axzoo fetch` logs the
    exact size before it downloads.
    """
    builds = list(builds)
    models = _missing_models(builds)
    if not models:
        return None
    known = [parameters(build, build.recipe, dict(build.sizes)) for build in models.values() if build.sizes]
    needed = BYTES_PER_WEIGHT * sum(known)
    unknown = len(models) - len(known)
    what = next(iter(models)) if len(models) == 1 else f"{len(models)} models"
    if not known:
        return f"to fetch: {what}; the size is not known, because the matrix has no sizes"
    free = _free_bytes()
    received = sum(_received_bytes(build) for build in models.values())
    room = f"; the disk has only {free / 1e9:.1f} GB left" if free < needed - received else ""
    without = f", and {unknown} of unknown size" if unknown else ""
    partly = f", {received / 1e9:.1f} GB of it already here" if received >= 10**8 else ""
    size = f"about {needed / 1e9:.1f} GB, estimated from sizes"
    return f"to fetch: {what}, {size}{without}{partly}{room}{_fetched(builds)}"


def refuse_full_disk(builds: Iterable[Build]) -> None:
    """Raises AxzooError when the disk is too small for the checkpoints to fetch, even if all have 4-bit weights.

    What is between that and the estimate of `to_fetch` only gets a warning there.
    """
    models = _missing_models(builds)
    known = [build for build in models.values() if build.sizes]
    weights = sum(parameters(build, build.recipe, dict(build.sizes)) for build in known)
    least = LEAST_BYTES_PER_WEIGHT * weights - sum(map(_received_bytes, known))
    if least > (free := _free_bytes()):
        raise AxzooError(
            f"{_names(list(models))}: the checkpoints to fetch take {least / 1e9:.1f} GB more at least, and the disk "
            f"of {RESULTS} has {free / 1e9:.1f} GB left: free some space, or build fewer models at once"
        )


def _missing_models(builds: Iterable[Build]) -> dict[str, Build]:
    """The hub's models that are not fetched yet, and are not used from the hub's cache, by name."""
    return {
        build.model: build
        for build in builds
        if isinstance(build.source, HubSource)
        and not (build.checkpoint / RECEIPT).exists()
        and not _is_used_in_place(build.source)
    }


def _is_used_in_place(source: HubSource) -> bool:
    if not os.environ.get("HF_HUB_OFFLINE"):
        return False
    from axzoo.fetch.hub_cache import fixed_snapshot

    return fixed_snapshot(source) is not None


def _free_bytes() -> int:
    existing = next(path for path in (RESULTS, *RESULTS.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def _received_bytes(build: Build) -> int:
    """What an interrupted fetch has left of a checkpoint."""
    folders = (build.checkpoint, build.checkpoint / PARTS)
    files = [path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_file()]
    return sum(path.stat().st_size for path in files)


def _fetched(builds: Iterable[Build]) -> str:
    """The part of the line about models that are complete, by their receipts."""
    sizes = {}
    for build in builds:
        if isinstance(build.source, HubSource) and (build.checkpoint / RECEIPT).exists():
            try:
                files = read_json(build.checkpoint / RECEIPT)["files"]
                sizes[build.model] = sum(record["size"] for record in files.values())
            except (AxzooError, KeyError, TypeError, AttributeError):
                continue  # a damaged receipt: fetched again
    count = "1 model" if len(sizes) == 1 else f"{len(sizes)} models"
    return f"; fetched before: {count}, {sum(sizes.values()) / 1e9:.1f} GB" if sizes else ""
