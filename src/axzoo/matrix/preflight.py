"""Checks before a build starts: wrong sizes, too little memory or disk space, recipes and prompts that do not suit the
model, builds that do not fit the chip."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from axzoo.core.errors import AxzooError
from axzoo.core.machine import physical_memory
from axzoo.forecast.sizes import device_memory
from axzoo.matrix.build import Build
from axzoo.matrix.chips import ChipTable
from axzoo.matrix.outlook import recipe_problem
from axzoo.matrix.resources import WIDTHS
from axzoo.model.spec import DecoderSpec
from axzoo.parts.kinds import KINDS, kind_of
from axzoo.parts.lock import Lock
from axzoo.weights.formats import FORMATS
from axzoo.weights.recipe import INTEGER_WEIGHT_TYPES, POST_WEIGHT_TYPES, Recipe

BLOCK_MEMORY = 320 << 20
"""Memory of a compile job for Python, numpy and onnx, and one block of rows while it is encoded."""


def bundle_bytes(lock: Lock) -> int:
    """A lower bound for the size of a bundle: one byte per weight on the device, two per value of the embedding."""
    return sum(part.parameters * (1 if kind_of(part.id.kind).on_device else 2) for part in lock.parts)


def sizes_of_json(text: str | None) -> dict[str, int]:
    """Parses the `--sizes` option of `axzoo lock`; empty without the option. Raises AxzooError when it is not a JSON
    object of positive integers."""
    try:
        sizes = {} if text is None else json.loads(text)
    except (ValueError, RecursionError):
        sizes = None
    if not isinstance(sizes, dict) or not all(type(size) is int and size > 0 for size in sizes.values()):
        raise AxzooError(f"--sizes {text!r:.80} is not a JSON object of positive integers")
    known = [*WIDTHS, *(kind.name for kind in KINDS)]
    if unknown := sorted(sizes.keys() - set(known)):
        raise AxzooError(f"--sizes: unknown key {unknown[0]!r:.80}: use one of {', '.join(known)}")
    return sizes


def check_sizes(lock: Lock, sizes: Mapping[str, int]) -> None:
    """Raises AxzooError when a matrix entry's `sizes` differ from the checkpoint's.

    Widths must be exact; parameter counts may differ by 1 %.
    """
    widths = {name: getattr(lock.spec.layer, field) for name, field in WIDTHS.items()}
    for key, stated in sizes.items():
        found = [part.parameters for part in lock.of_kind(key)]
        actual, tolerance = (max(found), 0.01) if found else (widths[key], 0.0)
        if abs(stated - actual) > tolerance * actual:
            raise AxzooError(
                f"the matrix says sizes.{key}: {stated}, but the checkpoint has {actual}: correct it, because it "
                f"determines which chips the model fits and the memory of jobs"
            )


def check_room(lock: Lock, folder: Path) -> None:
    """Raises AxzooError when this machine has too little memory for the largest job, or the disk of `folder` too little
    space for an s8 bundle."""
    needed = BLOCK_MEMORY + max(part.parameters for part in lock.parts if kind_of(part.id.kind).on_device)
    memory = physical_memory()
    if needed > memory:
        raise AxzooError(
            f"compiling {folder.name} needs about {needed >> 20} MB in one job, and this machine has {memory >> 20} MB"
        )
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if bundle_bytes(lock) > free:
        raise AxzooError(
            f"a bundle of {folder.name} takes at least {bundle_bytes(lock) >> 20} MB, and the disk of {existing} has "
            f"{free >> 20} MB left: free some space and run again"
        )


def refuse_recipe(spec: DecoderSpec, recipe: Recipe) -> None:
    """Raises AxzooError, which names the option, when the recipe exceeds what the model supports."""
    if problem := recipe_problem(spec, recipe):
        raise AxzooError(f"--{problem}")


def refuse_prompt(tokens: int, recipe: Recipe) -> None:
    """Raises AxzooError when a prompt of `tokens` tokens is too long for the KV cache, or empty."""
    if tokens > recipe.kv_cache_len:
        raise AxzooError(
            f"--prompt has {tokens} tokens, and the KV cache holds {recipe.kv_cache_len}: shorten it, or raise "
            f"--kv_cache_len"
        )
    if not tokens:
        raise AxzooError("--prompt has no tokens: give the checks some text")


def refuse_misfit(build: Build, chips: ChipTable) -> None:
    """Raises AxzooError, with numbers and suggestions, when the build does not fit the chip's memory."""
    if build.misfit is not None:
        raise AxzooError(f"{build.misfit}. {_advice(remedy.options for remedy in remedies(build, chips))}")


def misfit_with_advice(build: Build, chips: ChipTable) -> str:
    """The `misfit` of a build that is left out, with the keys of the matrix with which it would fit."""
    return f"{build.misfit}. {_advice(remedy.keys for remedy in remedies(build, chips))}"


def _advice(remedies: Iterable[str]) -> str:
    options = list(remedies)
    if not options:
        return "Smaller weights or another chip would not be enough"
    return f"It would fit with {', or with '.join(options)}"


@dataclass(frozen=True)
class Remedy:
    """What to change so that a build fits; None keeps a setting."""

    weight_type: str | None = None
    post_weight_type: str | None = None
    kv_cache_len: int | None = None
    chip: str | None = None

    @property
    def options(self) -> str:
        """The change as options of llm_build."""
        names = {"weight_type": "-w", "post_weight_type": "--post_weight_type", "kv_cache_len": "--kv_cache_len"}
        return " ".join(f"{name} {value}" for name, value in self._changes({**names, "chip": "--chip"}))

    @property
    def keys(self) -> str:
        """The change as keys of a matrix."""
        names = {name: f"{name}:" for name in ("weight_type", "post_weight_type", "kv_cache_len")}
        return ", ".join(f"{name} {value}" for name, value in self._changes({**names, "chip": "chips:"}))

    def _changes(self, names: Mapping[str, str]) -> Iterator[tuple[str, str | int]]:
        return ((names[key], value) for key in names if (value := getattr(self, key)) is not None)


def remedies(build: Build, chips: ChipTable) -> Iterator[Remedy]:
    """Changes with which the build would fit: smaller weights, a shorter KV cache, another chip."""
    memory, recipe = build.npu_memory_mb, build.recipe
    yield from _first_fitting(build, memory, _smaller_weights(recipe))
    shortest = max(1, recipe.prefill_len - 1, recipe.max_prompt_len - 1)
    if _fits(build, replace(recipe, kv_cache_len=shortest), memory):
        yield Remedy(kv_cache_len=_longest_cache(build, shortest, memory))
    for chip in [name for name in chips.chips if name != build.chip]:
        candidates = [(Remedy(), recipe), *_smaller_weights(recipe)]
        for remedy in _first_fitting(build, chips.memory_mb(chip), candidates):
            yield replace(remedy, chip=chip)


def _first_fitting(build: Build, memory_mb: int, candidates: Iterable[tuple[Remedy, Recipe]]) -> list[Remedy]:
    return [remedy for remedy, recipe in candidates if _fits(build, recipe, memory_mb)][:1]


def _smaller_weights(recipe: Recipe) -> Iterator[tuple[Remedy, Recipe]]:
    """Recipes with smaller weight types and the change that selects them, the smallest first."""
    layers = [kind for kind in INTEGER_WEIGHT_TYPES if _is_smaller(kind, recipe.weight_type)]
    heads = [kind for kind in POST_WEIGHT_TYPES if kind == "s8" and _is_smaller(kind, recipe.post_weight_type)]
    for layer, head in product([recipe.weight_type, *layers], [recipe.post_weight_type, *heads]):
        remedy = Remedy(
            weight_type=layer if layer != recipe.weight_type else None,
            post_weight_type=head if head != recipe.post_weight_type else None,
        )
        if remedy != Remedy():
            yield remedy, replace(recipe, weight_type=layer, post_weight_type=head)


def _is_smaller(kind: str, than: str) -> bool:
    return FORMATS[kind].bytes_on_device < FORMATS[than].bytes_on_device


def _longest_cache(build: Build, fitting: int, memory_mb: int) -> int:
    """The largest kv_cache_len that fits: a binary search between `fitting` and the build's kv_cache_len, which does
    not fit."""
    too_long = build.recipe.kv_cache_len
    while too_long - fitting > 1:
        middle = (fitting + too_long) // 2
        if _fits(build, replace(build.recipe, kv_cache_len=middle), memory_mb):
            fitting = middle
        else:
            too_long = middle
    return fitting


def _fits(build: Build, recipe: Recipe, memory_mb: int) -> bool:
    return device_memory(recipe, build, dict(build.sizes)).total_mb <= memory_mb
