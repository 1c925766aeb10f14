"""The model of a board's speed: what must hold whatever its parameters are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axzoo.forecast.sizes import Anatomy, device_memory, guard_mb, io_mb
from axzoo.forecast.speed import HOSTS, load_parameters, prefill_call_ms, token_ms, ttft_ms
from axzoo.weights.recipe import WEIGHT_TYPES, Recipe

SPEED = load_parameters()
CHIPS = sorted(SPEED.chips)

sizes = st.builds(
    lambda layers, hidden, ratio, groups, vocab: Anatomy(
        model_type="llama",
        num_hidden_layers=layers,
        layer=2 * hidden * (hidden + hidden // groups) + 3 * hidden * hidden * ratio,
        post=hidden * vocab,
        embedding=hidden * vocab,
        kv_width=hidden // groups,
        hidden_size=hidden,
        q_width=hidden,
        checkpoint=layers * hidden**2,
    ),
    layers=st.integers(1, 80),
    hidden=st.integers(4, 64).map(lambda n: 128 * n),
    ratio=st.integers(1, 5),
    groups=st.sampled_from([1, 2, 4, 8]),
    vocab=st.integers(1000, 300_000),
)
lengths = st.integers(1, 31).map(lambda n: 128 * n)


def _groups(cache: int) -> Recipe:
    """A recipe with all prefill groups that fit into a cache of this length."""
    return Recipe(kv_cache_len=cache, last_kv_cache_len=tuple(range(128, cache - 127, 128)))


@given(model=sizes, cache=lengths, chip=st.sampled_from(CHIPS), host=st.sampled_from(HOSTS))
def test_a_longer_cache_is_slower_and_larger(model: Anatomy, cache: int, chip: str, host: str) -> None:
    short, long = Recipe(kv_cache_len=cache), Recipe(kv_cache_len=cache + 128)
    times = [token_ms(SPEED, SPEED.chips[chip], host, model, recipe) for recipe in (short, long)]  # type: ignore[arg-type]
    assert 0 < times[0] < times[1]
    memory = [device_memory(recipe, model, model.sizes).kv_cache_mb for recipe in (short, long)]
    assert memory[0] <= memory[1]
    assert io_mb(model, short) < io_mb(model, long)


@given(model=sizes, chip=st.sampled_from(CHIPS), host=st.sampled_from(HOSTS))
def test_smaller_weights_are_faster_and_smaller(model: Anatomy, chip: str, host: str) -> None:
    recipes = [Recipe(weight_type=name) for name in ("s4", "s8", "bf16")]
    times = [token_ms(SPEED, SPEED.chips[chip], host, model, recipe) for recipe in recipes]  # type: ignore[arg-type]
    memory = [device_memory(recipe, model, model.sizes).weights_mb for recipe in recipes]
    assert times == sorted(set(times))
    assert memory == sorted(memory) and memory[0] < memory[2]


@given(model=sizes, chip=st.sampled_from(CHIPS), host=st.sampled_from(HOSTS), weights=st.sampled_from(WEIGHT_TYPES))
def test_more_layers_are_slower_and_larger(model: Anatomy, chip: str, host: str, weights: str) -> None:
    recipe, deeper = Recipe(weight_type=weights), replace(model, num_hidden_layers=model.num_hidden_layers + 1)  # type: ignore[arg-type]
    for time in (token_ms, lambda *given: ttft_ms(*given, 100)):
        assert time(SPEED, SPEED.chips[chip], host, model, recipe) < time(
            SPEED, SPEED.chips[chip], host, deeper, recipe
        )  # type: ignore[operator]
    smaller, larger = (device_memory(recipe, sized, sized.sizes) for sized in (model, deeper))
    assert smaller.total_mb <= larger.total_mb  # in whole MB


@given(model=sizes, cache=lengths, prompt=st.integers(1, 4000), more=st.integers(1, 500), chip=st.sampled_from(CHIPS))
def test_a_prompt_takes_its_groups(model: Anatomy, cache: int, prompt: int, more: int, chip: str) -> None:
    """A longer prompt is never faster; it takes as long as the groups that it fills, one of which may be half empty."""
    recipe = _groups(cache)
    prompt = min(prompt, recipe.max_prompt_len)
    longer = min(prompt + more, recipe.max_prompt_len)
    times = [ttft_ms(SPEED, SPEED.chips[chip], "onchip", model, recipe, length) for length in (prompt, longer)]
    assert times[0] <= times[1]
    assert (times[0] == times[1]) == (math.ceil(prompt / 128) == math.ceil(longer / 128))


def test_later_groups_take_longer() -> None:
    model = Anatomy("llama", 28, 46_797_824, 233_375_232, 233_375_232, 256, 1536, 1536, 1_543_714_304)
    times = [prefill_call_ms(SPEED, SPEED.chips["AX650"], model, 128, past) for past in range(0, 2048, 128)]
    assert times == sorted(set(times))


def test_pcie_adds_its_time_to_each_call() -> None:
    model = Anatomy("llama", 28, 46_797_824, 233_375_232, 233_375_232, 256, 1536, 1536, 1_543_714_304)
    chip, recipe = SPEED.chips["AX650"], _groups(1024)
    added = token_ms(SPEED, chip, "axcl", model, recipe) - token_ms(SPEED, chip, "onchip", model, recipe)
    assert added == pytest.approx(29 * SPEED.pcie_call_ms)
    added = ttft_ms(SPEED, chip, "axcl", model, recipe, 300) - ttft_ms(SPEED, chip, "onchip", model, recipe, 300)
    assert added == pytest.approx(3 * 29 * SPEED.pcie_call_ms)


def test_a_build_without_prefill_decodes_the_prompt() -> None:
    model = Anatomy("llama", 28, 46_797_824, 233_375_232, 233_375_232, 256, 1536, 1536, 1_543_714_304)
    chip, recipe = SPEED.chips["AX650"], Recipe(prefill_len=0)
    token = token_ms(SPEED, chip, "onchip", model, recipe)
    assert ttft_ms(SPEED, chip, "onchip", model, recipe, 10) == pytest.approx(10 * token)


def test_the_guard_keeps_the_floor_and_a_share_of_the_post_layer_free() -> None:
    model = Anatomy("llama", 1, 1000, 100_000_000, 100_000_000, 256, 1536, 1536, 1)
    assert guard_mb(Recipe(), model) == pytest.approx(128 * 1.048576 + 0.15 * 116.4, abs=0.5)
