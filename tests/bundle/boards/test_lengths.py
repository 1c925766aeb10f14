"""Lengths as axllm derives them, against its arithmetic written out here, and what is said about recipes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from axzoo.bundle.boards.lengths import host_lengths, host_warnings, recipe_lengths
from axzoo.model.rope import RopeSpec
from axzoo.model.spec import LayerSpec, NormSpec
from axzoo.parts.groups import layer_groups
from axzoo.weights.recipe import Recipe

CONFIG = Path(__file__).parents[3] / "config"


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Recipes of all lengths that a build accepts, half of them where the groups reach the end of the cache."""
    chunk, groups = draw(st.integers(0, 160)), draw(st.integers(1, 9))
    reach = chunk * groups if chunk else 0
    cache = draw(st.one_of(st.integers(max(1, reach - 1), 3000), st.integers(max(1, reach - 1), reach + 2)))
    return Recipe(
        prefill_len=chunk,
        kv_cache_len=cache,
        last_kv_cache_len=tuple(chunk * p for p in range(1, groups if chunk else 1)),
    )


def stride(recipe: Recipe, kv_size: int) -> int:
    """The host's arithmetic on the element counts of the tensors, without axzoo's shape groups."""
    cache, chunk = recipe.kv_cache_len, recipe.prefill_len
    lengths = [(1, cache)] + ([(chunk, past) for past in (0, *recipe.last_kv_cache_len)] if chunk else [])
    masks = [(tokens, tokens * (past + tokens)) for tokens, past in lengths]
    decode = [mask - 1 for tokens, mask in masks if tokens == 1]
    prefill = [mask // tokens for tokens, mask in masks if tokens > 1] or [masks[0][1]]
    return cache * kv_size // max(*decode, *prefill)


@given(recipes(), st.integers(1, 8192))
def test_the_row_stride_is_the_row_length_of_exactly_the_recipes_without_a_warning(
    recipe: Recipe, kv_size: int
) -> None:
    found = recipe_lengths(recipe, kv_size)
    assert found.row_stride == stride(recipe, kv_size)
    assert (found.kv_cache_size, found.kv_cache_num, found.max_token_len) == (
        kv_size,
        recipe.kv_cache_len,
        recipe.kv_cache_len,
    )
    accepted = recipe.prefill_len > 1 and recipe.max_prompt_len <= recipe.kv_cache_len
    assert (not host_warnings(recipe)) == found.fit == (found.row_stride == kv_size) == accepted
    if accepted:
        assert (found.prefill_token_num, found.prompt_len) == (recipe.prefill_len, recipe.max_prompt_len)


@given(recipes())
def test_the_advice_is_followed_by_a_recipe_without_a_warning(recipe: Recipe) -> None:
    for warning in host_warnings(recipe):
        (advice,) = re.findall(r": use (.*?), unless the host is ", warning)
        for option in re.split(", or ", advice):
            assert not host_warnings(_advised(recipe, option)), (recipe, option)


def _advised(recipe: Recipe, option: str) -> Recipe:
    """The recipe changed as one of the advised options says, with a range or limit taken to its end."""
    lengths = re.findall(r"\b(prefill_len|kv_cache_len) (?:\d+ to )?(\d+)", option)
    changes: dict[str, Any] = {key: int(value) for key, value in lengths}
    if "last_kv_cache_len" in option:
        last = re.search(r"last_kv_cache_len up to (\d+)", option)
        changes |= {"last_kv_cache_len": tuple(p for p in recipe.last_kv_cache_len if last and p <= int(last[1]))}
    return replace(recipe, **changes)


def test_lengths_of_a_whole_layer() -> None:
    """A layer of SmolLM2-135M with the groups that all 56 models of the zoo had: the stride is 191 instead of 192."""
    norm, rope = NormSpec("rms_norm", 1e-5), RopeSpec(1e5, 64)
    spec = LayerSpec(576, 1536, 9, 3, 64, norm, rope, 2048, "silu")
    long = Recipe(last_kv_cache_len=tuple(range(128, 1024, 128)))
    found = host_lengths(layer_groups(spec, long))
    assert (found.capacity, found.kv_cache_size, found.row_stride, found.fit) == (1024, 192, 191, False)
    found = host_lengths(layer_groups(spec, replace(long, last_kv_cache_len=long.last_kv_cache_len[:-1])))
    assert (found.capacity, found.kv_cache_size, found.row_stride, found.fit) == (1023, 192, 192, True)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (
            Recipe(last_kv_cache_len=tuple(range(128, 1024, 128))),
            [
                "kv_cache_len 1023",
                "token 1024",
                "axllm",
                "use kv_cache_len 1024 or more, or last_kv_cache_len up to 768",
            ],
        ),
        (Recipe(kv_cache_len=127), ["token 128", "use kv_cache_len 128 or more, or prefill_len 2 to 127"]),
        (Recipe(prefill_len=0), ["prefill_len 0 ", "1024 tokens", "axllm", "main_prefill and the Python hosts"]),
        (Recipe(prefill_len=1), ["prefill_len 1 ", "axllm", "use prefill_len 2 to 1023"]),
        (Recipe(post_topk=5), ["post_topk 5 ", "axllm", "use post_topk 0", "main_prefill with --use_topk 1"]),
        (Recipe(hidden_state_type="fp32"), ["hidden_state_type fp32 ", "axllm", "main_prefill", "bf16"]),
    ],
)
def test_warnings_name_the_hosts_and_what_would_do(recipe: Recipe, words: list[str]) -> None:
    (warning,) = host_warnings(recipe)
    assert "\n" not in warning
    assert [word for word in words if word not in warning] == []


@pytest.mark.parametrize("name", ["zoo.yaml", "demo.yaml"])
def test_the_matrices_and_the_defaults_are_loadable(name: str) -> None:
    matrix = yaml.safe_load((CONFIG / name).read_text())
    lengths = ("prefill_len", "kv_cache_len", "last_kv_cache_len", "post_topk", "hidden_state_type")
    for entry in matrix["models"].values():
        given = matrix.get("defaults", {}) | entry
        assert host_warnings(Recipe.from_dict({key: given[key] for key in lengths if key in given})) == []
    assert host_warnings(Recipe()) == []
