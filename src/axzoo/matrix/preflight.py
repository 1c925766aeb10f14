"""What is refused before a build begins: sizes that are not the model's, too little memory or disk, recipes and prompts
that do not fit the model, builds that do not fit the chip."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

from axzoo.core.errors import AxzooError
from axzoo.core.machine import physical_memory
from axzoo.matrix.build import Build
from axzoo.matrix.chips import ChipTable
from axzoo.matrix.resources import device_memory
from axzoo.model.families import load_family
from axzoo.model.rope import supported_length
from axzoo.model.spec import DecoderSpec
from axzoo.parts.kinds import kind_of
from axzoo.parts.lock import Lock
from axzoo.weights.formats import FORMATS
from axzoo.weights.recipe import INTEGER_WEIGHT_TYPES, POST_WEIGHT_TYPES, WEIGHT_GROUP_SIZES, Recipe

BLOCK_MEMORY = 320 << 20
"""A compile job with Python, numpy and onnx, and a block of rows while it is encoded."""


def bundle_bytes(lock: Lock) -> int:
    """The least a bundle takes: what the board computes with at one byte a weight, the embedding at two."""
    return sum(part.parameters * (1 if kind_of(part.id.kind).on_device else 2) for part in lock.parts)


def sizes_of_json(said: str | None) -> dict[str, int]:
    """`sizes` of a matrix entry as `axzoo lock` is given them; empty where it is not. Raises AxzooError when it is not
    a JSON object of whole numbers."""
    try:
        sizes = {} if said is None else json.loads(said)
    except (ValueError, RecursionError):
        sizes = None
    if not isinstance(sizes, dict) or not all(type(size) is int and size > 0 for size in sizes.values()):
        raise AxzooError(f"--sizes {said!r:.80} is not a JSON object of whole numbers")
    return sizes


def check_sizes(lock: Lock, sizes: Mapping[str, int]) -> None:
    """Raises AxzooError when a matrix entry's `sizes`, which decide where a model fits, are not this model's.

    `kv_width` must be exact; the parameters of a part may be 1 % off.
    """
    for key, stated in sizes.items():
        found = [part.parameters for part in lock.of_kind(key)]
        actual, tolerance = (max(found), 0.01) if found else (lock.spec.layer.kv_size, 0.0)
        if abs(stated - actual) > tolerance * actual:
            raise AxzooError(
                f"the matrix says sizes.{key}: {stated}, but the checkpoint has {actual}: correct it, since it decides "
                f"which chips the model fits"
            )


def check_room(lock: Lock, folder: Path) -> None:
    """Raises AxzooError when this machine cannot hold the largest job, or the disk of `folder` an s8 bundle."""
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
            f"{free >> 20} MB left: free some and run again"
        )


def refuse_recipe(spec: DecoderSpec, recipe: Recipe) -> None:
    """Raises AxzooError when the model has no such positions, tokens or groups of weights."""
    known = supported_length(spec.layer.rope, spec.layer.max_position_embeddings)
    if recipe.positions > known:
        raise AxzooError(
            f"--kv_cache_len {recipe.kv_cache_len} asks for {recipe.positions} positions, and config.json gives the "
            f"model {known} (max_position_embeddings, and what its rope adds): lower it"
        )
    if recipe.post_topk > spec.vocab_size:
        raise AxzooError(f"--post_topk {recipe.post_topk} is more than the vocabulary's {spec.vocab_size}: lower it")
    widths = _input_features(spec)
    if recipe.weight_group_size and any(width % recipe.weight_group_size for width in widths):
        fitting = [size for size in WEIGHT_GROUP_SIZES if size and not any(width % size for width in widths)]
        raise AxzooError(
            f"--weight_group_size {recipe.weight_group_size} does not divide the input features of every matrix, "
            f"{' and '.join(map(str, widths))}: use {', '.join(map(str, [*fitting, 0]))}"
        )


def refuse_prompt(tokens: int, recipe: Recipe, check_level: int) -> None:
    """Raises AxzooError for a prompt of so many tokens that the check asked for cannot take it."""
    if tokens > recipe.kv_cache_len:
        raise AxzooError(
            f"--prompt has {tokens} tokens, and the KV cache holds {recipe.kv_cache_len}: shorten it, or raise "
            f"--kv_cache_len"
        )
    fewest = 2 if check_level == 1 else 1  # level 1 prefills all but the last, which it decodes
    if tokens < fewest:
        raise AxzooError(f"--prompt has {tokens} tokens, and check level {check_level} needs {fewest}: lengthen it")


def refuse_misfit(build: Build, chips: ChipTable) -> None:
    """Raises AxzooError, with the numbers and what would help, when the chip's memory does not hold the build."""
    if build.misfit is None:
        return
    ways = list(_remedies(build, chips))
    advice = (
        f"It would fit with {', or with '.join(ways)}" if ways else "Smaller weights and another chip do not suffice"
    )
    raise AxzooError(f"{build.misfit}. {advice}")


def _remedies(build: Build, chips: ChipTable) -> Iterator[str]:
    """Changes of the command line after which the build fits: its weights, its KV cache, its chip."""
    memory, recipe = chips.memory_mb(build.chip), build.recipe
    yield from _first_that_fits(build, memory, _smaller_weights(recipe))
    shortest = max(1, recipe.prefill_len - 1, recipe.max_prompt_len - 1)
    if _fits(build, replace(recipe, kv_cache_len=shortest), memory):
        yield f"--kv_cache_len {_longest_cache(build, shortest, memory)}"
    for chip in [name for name in chips.chips if name != build.chip]:
        ways = [("", recipe), *_smaller_weights(recipe)]
        for words in _first_that_fits(build, chips.memory_mb(chip), ways):
            yield f"{words} --chip {chip}".lstrip()


def _first_that_fits(build: Build, memory_mb: int, ways: Iterable[tuple[str, Recipe]]) -> list[str]:
    return [words for words, recipe in ways if _fits(build, recipe, memory_mb)][:1]


def _smaller_weights(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """Integer weights where floats are, s4 where s8 is, with the options that say so; the least change first."""
    layers = [kind for kind in INTEGER_WEIGHT_TYPES if _is_smaller(kind, recipe.weight_type)]
    heads = [kind for kind in POST_WEIGHT_TYPES if kind == "s8" and _is_smaller(kind, recipe.post_weight_type)]
    for layer, head in product([recipe.weight_type, *layers], [recipe.post_weight_type, *heads]):
        words = [f"-w {layer}"] if layer != recipe.weight_type else []
        words += [f"--post_weight_type {head}"] if head != recipe.post_weight_type else []
        if words:
            yield " ".join(words), replace(recipe, weight_type=layer, post_weight_type=head)


def _is_smaller(kind: str, than: str) -> bool:
    return FORMATS[kind].bytes_on_device < FORMATS[than].bytes_on_device


def _longest_cache(build: Build, fits: int, memory_mb: int) -> int:
    """The largest kv_cache_len that fits, found between one that does and the build's own, which does not."""
    too_long = build.recipe.kv_cache_len
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if _fits(build, replace(build.recipe, kv_cache_len=middle), memory_mb):
            fits = middle
        else:
            too_long = middle
    return fits


def _fits(build: Build, recipe: Recipe, memory_mb: int) -> bool:
    return device_memory(recipe, build.num_hidden_layers, dict(build.sizes)).total_mb <= memory_mb


def _input_features(spec: DecoderSpec) -> list[int]:
    """Of a layer's matrices, each width once."""
    tensors = load_family(spec.model_type).layer_tensors(spec, 0).values()
    return sorted({tensor.shape[1] for tensor in tensors if len(tensor.shape) == 2})
