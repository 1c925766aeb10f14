"""Which builds fit their chip, and the messages for the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axzoo.forecast.sizes import DeviceMemory, device_memory
from axzoo.matrix.chips import Chip, ChipTable, load_chips
from axzoo.matrix.entries import Zoo, load_zoo
from axzoo.matrix.preflight import misfit_with_advice, remedies
from axzoo.weights.formats import FORMATS
from axzoo.weights.recipe import HIDDEN_STATE_TYPES, POST_WEIGHT_TYPES, WEIGHT_TYPES, Recipe

ROOT = Path(__file__).parents[2]
Load = Callable[[str], Zoo]

LLAMA_2_7B = "sizes: {layer: 202383360, post: 131076096, kv_width: 4096}"


def test_every_type_has_a_format() -> None:
    assert set(FORMATS) == {*WEIGHT_TYPES, *POST_WEIGHT_TYPES, *HIDDEN_STATE_TYPES}


def _model(layers: int) -> SimpleNamespace:
    return SimpleNamespace(model_type="llama", num_hidden_layers=layers)


@pytest.mark.parametrize(
    ("recipe", "memory"),
    [
        (
            Recipe(),
            DeviceMemory(1164 * 11 // 10, 164),
        ),  # 10 layers and the post layer at 1.164 bytes; 2 * 10 * 1023 * 4000 * 2
        (Recipe(post_weight_type="bf16"), DeviceMemory(1164 + 400, 164)),
        (Recipe(weight_type="bf16"), DeviceMemory(4000 + 116, 164)),
        (Recipe(weight_type="fp32", post_weight_type="fp32", hidden_state_type="fp32"), DeviceMemory(4400, 327)),
        (Recipe(kv_cache_len=127), DeviceMemory(1280, 20)),
    ],
)
def test_device_memory_by_hand(recipe: Recipe, memory: DeviceMemory) -> None:
    assert device_memory(recipe, _model(10), {"layer": 100_000_000, "post": 100_000_000, "kv_width": 4000}) == memory


def test_build_that_does_not_fit_is_left_out_with_numbers(load: Load) -> None:
    zoo = load(f"models:\n  L: {{path: x, model_type: llama, num_hidden_layers: 32, {LLAMA_2_7B}}}\n")
    (fits,), (left_out,) = zoo.builds(), zoo.left_out()
    assert (fits.chip, fits.misfit) == ("AX650", None)
    assert left_out.chip == "AX620E"
    assert left_out.misfit == "AX620E has 3072 MB, L-w8a16 needs 8227 MB: 7691 of weights, 536 of KV cache"


def test_recipe_affects_the_fit(load: Load) -> None:
    entry = f"path: x, model_type: llama, num_hidden_layers: 32, chips: AX650, weight_type: [s8, bf16], {LLAMA_2_7B}"
    zoo = load(f"models: {{L: {{{entry}}}}}")
    assert [build.tag for build in zoo.builds()] == ["w8a16"]
    assert [build.tag for build in zoo.left_out()] == ["w16a16"]


def test_without_sizes_nothing_is_left_out(load: Load) -> None:
    zoo = load("models: {L: {path: x, model_type: llama, num_hidden_layers: 1024, weight_type: fp32}}")
    assert [build.chip for build in zoo.builds()] == ["AX650", "AX620E"]
    assert zoo.left_out() == ()


@given(
    layer=st.integers(1, 10**9), post=st.integers(1, 10**9), kv_width=st.integers(1, 10**5), spare=st.integers(-2, 2)
)
def test_build_fits_if_and_only_if_memory_suffices(layer: int, post: int, kv_width: int, spare: int) -> None:
    needed = device_memory(Recipe(), _model(2), {"layer": layer, "post": post, "kv_width": kv_width}).total_mb
    table = ChipTable(chips={"A1": Chip(other_names=(), tops_int8=1, npu_memory_mb=max(1, needed + spare))})
    sizes = {"layer": layer, "post": post, "kv_width": kv_width}
    entry = {"path": "x", "model_type": "llama", "num_hidden_layers": 2, "chips": ["A1"], "sizes": sizes}
    zoo = Zoo.model_validate({"models": {"M": entry}}, context=table)
    fits = spare >= 0 or needed <= 1
    assert (len(zoo.builds()), len(zoo.left_out())) == ((1, 0) if fits else (0, 1))


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"chip": "AX620E"}, "It would fit with weight_type: s4, or with kv_cache_len: 28770, or with chips: AX650"),
        ({"chip": "AX650", "layer": 10**9}, "Smaller weights or another chip would not be enough"),
        (
            {"chip": "AX620E", "weight_type": "fp32", "layer": 10**8, "kv": 256},
            "It would fit with weight_type: s8, or with chips: AX650",
        ),
    ],
)
def test_what_would_fit_instead_in_words_of_the_matrix(load: Load, changes: dict[str, Any], advice: str) -> None:
    values = {"layer": 60_000_000, "weight_type": "s8", "kv": 1024, **changes}
    sizes = f"{{layer: {values['layer']}, post: 60000000, kv_width: {values['kv']}}}"
    zoo = load(
        f"models: {{L: {{path: x, model_type: llama, num_hidden_layers: 16, kv_cache_len: 32767, "
        f"chips: {values['chip']}, weight_type: {values['weight_type']}, sizes: {sizes}}}}}"
    )
    (build,) = zoo.left_out()
    assert misfit_with_advice(build, zoo.chip_table) == f"{build.misfit}. {advice}"


@pytest.mark.parametrize("model", ["Llama-2-7b-hf", "phi-2", "Qwen2-7B-Instruct"])
def test_advice_is_true(model: str) -> None:
    """A build of the zoo that is left out fits with every remedy."""
    chips = load_chips(ROOT / "config/chips.yaml")
    zoo = load_zoo(ROOT / "config/zoo.yaml", ROOT / "config/chips.yaml")
    build = next(build for build in zoo.builds_of(model) if build.misfit is not None)
    found = list(remedies(build, chips))
    assert found
    for remedy in found:
        given = {
            key: value for key in ("weight_type", "post_weight_type", "kv_cache_len") if (value := getattr(remedy, key))
        }
        needed = device_memory(replace(build.recipe, **given), build, dict(build.sizes)).total_mb
        assert needed <= chips.memory_mb(remedy.chip or build.chip)
