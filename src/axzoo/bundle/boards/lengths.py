"""The lengths that axllm derives from a layer's tensors, and which hosts cannot load what a recipe builds.

axllm is the boards' current host program. It computes the distance of two rows in its KV cache from the longest group
that it finds. If a prefill group reaches beyond the decode group's cache, that distance is too small, and every row is
written and read at the wrong place, without a message. main_prefill and the Python hosts take it from the tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from axzoo.parts.groups import ShapeGroup, layer_group
from axzoo.weights.recipe import Recipe

USUAL_PREFILL_LEN = 128


@dataclass(frozen=True)
class HostLengths:
    """The lengths of a layer as axllm computes them: in tokens, the last two in values.

    `capacity` is the number of tokens that the longest group holds, `prompt_len` that of the longest prefill group, 0
    without one. `kv_cache_size` is the length of a cache row, `row_stride` the distance of two rows in memory.
    """

    max_token_len: int
    kv_cache_num: int
    prefill_token_num: int
    prompt_len: int
    capacity: int
    kv_cache_size: int
    row_stride: int

    @property
    def fit(self) -> bool:
        """Whether the host keeps every cache row where the compiled files expect it."""
        return self.row_stride == self.kv_cache_size and self.max_token_len <= self.kv_cache_num


def host_lengths(groups: Sequence[ShapeGroup]) -> HostLengths:
    """Compute the lengths of a layer from its shape groups, decode first, as axllm does.

    A group with a single index is a decode group. Without any other group, the first one is taken for a prefill group
    too. Raises KeyError when the first group lacks a tensor of a decoder layer.
    """
    first = _elements(groups[0])
    decode = [sizes for sizes in map(_elements, groups) if sizes["indices"] == 1]
    prefill = [group for group in groups if _elements(group)["indices"] > 1]
    tokens = next(tensor.shape[-1] for tensor in prefill[0].inputs if tensor.name == "indices") if prefill else 0
    prompt_len = max((_elements(group)["mask"] // tokens for group in prefill), default=0)
    capacity = max([prompt_len or first["mask"], *(sizes["mask"] - 1 for sizes in decode)])
    return HostLengths(
        max_token_len=first["mask"] - 1,
        kv_cache_num=first["K_cache"] // first["K_cache_out"],
        prefill_token_num=tokens,
        prompt_len=prompt_len,
        capacity=capacity,
        kv_cache_size=first["K_cache_out"],
        row_stride=first["K_cache"] // capacity,
    )


def _elements(group: ShapeGroup) -> dict[str, int]:
    return {tensor.name: prod(tensor.shape) for tensor in (*group.inputs, *group.outputs)}


def recipe_lengths(recipe: Recipe, kv_size: int = 1) -> HostLengths:
    """The lengths of a layer that the recipe builds. Whether they fit does not depend on `kv_size`, the row length."""
    lengths = [(1, recipe.kv_cache_len)]
    if recipe.prefill_len:
        lengths += [(recipe.prefill_len, past) for past in (0, *recipe.last_kv_cache_len)]
    return host_lengths([layer_group(recipe.hidden_state_type, 1, kv_size, *length) for length in lengths])


def host_warnings(recipe: Recipe, embedding_scale: float = 1.0) -> list[str]:
    """One sentence for each property of the recipe with which a board's host cannot use the build. Each starts with the
    key and says what would do. `embedding_scale` is the factor of the model's embedding."""
    found = (_lengths(recipe), _post_layer(recipe), _hidden_state(recipe), _embedding(recipe, embedding_scale))
    return [warning for warning in found if warning]


def _lengths(recipe: Recipe) -> str | None:
    found = recipe_lengths(recipe)
    if found.fit:
        return None
    cache, chunk, reach = recipe.kv_cache_len, recipe.prefill_len, recipe.max_prompt_len
    fault = f"so axllm computes a wrong length of the cache rows from {found.capacity} tokens and answers nonsense"
    if chunk == 0:
        usual = f"prefill_len {min(USUAL_PREFILL_LEN, cache)}" if cache > 1 else "prefill_len 2 and kv_cache_len 2"
        return (
            f"prefill_len 0 builds no prefill groups, {fault}, and main_prefill and the Python hosts cannot load it "
            f"either: use {usual}, unless the host is ax-llm's older `main`"
        )
    if chunk == 1:
        longer = f"prefill_len 2 to {cache}" if cache > 1 else "prefill_len 2 and kv_cache_len 2"
        longer += " and no last_kv_cache_len" if recipe.last_kv_cache_len else ""
        return (
            f"prefill_len 1 builds groups that axllm takes for decode groups, {fault}: use {longer}, unless the host "
            f"is main_prefill"
        )
    if recipe.last_kv_cache_len:
        shorter = max((past for past in recipe.last_kv_cache_len if past + chunk <= cache), default=0)
        other = f", or last_kv_cache_len up to {shorter}" if shorter else ", or no last_kv_cache_len"
    else:
        other = f", or prefill_len 2 to {cache}" if cache > 1 else ""
    return (
        f"kv_cache_len {cache} is shorter than the prefill groups, which end at token {reach}, {fault}: use "
        f"kv_cache_len {reach} or more{other}, unless the host is main_prefill or a Python host"
    )


def _post_layer(recipe: Recipe) -> str | None:
    if not recipe.post_topk:
        return None
    return (
        f"post_topk {recipe.post_topk} replaces the logits, which axllm needs: use post_topk 0, unless the host is "
        f"main_prefill with --use_topk 1"
    )


def _hidden_state(recipe: Recipe) -> str | None:
    if recipe.hidden_state_type == "bf16":
        return None
    return (
        f"hidden_state_type {recipe.hidden_state_type} is for comparisons on this computer: boards' hosts, axllm and "
        f"main_prefill among them, exchange bf16 with the compiled files; use hidden_state_type bf16"
    )


def _embedding(recipe: Recipe, scale: float) -> str | None:
    if recipe.embedding_scale == "graph" or scale == 1:
        return None
    return (
        f"embedding_scale host leaves it to the host to multiply text embeddings by {scale:g}, as axllm does not: "
        f"use embedding_scale graph, unless the host is ax-llm's program for MiniCPM-V 2.0"
    )
