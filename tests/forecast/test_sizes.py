"""Sizes of models and builds, compared with files that axzoo wrote and with measured boards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from axzoo.core.errors import AxzooError
from axzoo.forecast.published import published_models, published_rows
from axzoo.forecast.sizes import anatomy_of_sizes, anatomy_of_spec, device_memory, flash_bytes, guard_mb, io_mb
from axzoo.model.spec import DecoderSpec
from axzoo.parts.groups import layer_groups
from axzoo.parts.lock_index import read_index
from axzoo.weights.recipe import Recipe
from tiny_model import Built, Checkpoint

SMALL: dict[str, Any] = {"prefill_len": 8, "kv_cache_len": 31}
RECIPES = (
    Recipe(**SMALL, last_kv_cache_len=(8, 16)),
    Recipe("s4", **SMALL),
    Recipe("s8", "bf16", **SMALL),
    Recipe("bf16", "bf16", **SMALL),
    Recipe("s8", "fp32", "fp32", prefill_len=8, kv_cache_len=127),
)


@pytest.fixture
def spec(s8: Built) -> DecoderSpec:
    return read_index(s8.locks).spec


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.weight_type}-{recipe.post_weight_type}")
def test_files_have_the_forecast_size(build_tiny: Callable[[Recipe], Built], recipe: Recipe) -> None:
    built = build_tiny(recipe)
    written = sum(path.stat().st_size for path in (*built.layers, built.post, built.embedding))
    assert flash_bytes(recipe, anatomy_of_spec(read_index(built.locks).spec)) == pytest.approx(written, rel=0.03)


def test_parameters_are_those_of_the_lock(checkpoint: Checkpoint, s8: Built, spec: DecoderSpec) -> None:
    anatomy = anatomy_of_spec(spec)
    assert anatomy.checkpoint == sum(tensor.numel() for tensor in set(checkpoint.model.parameters()))
    assert anatomy.num_hidden_layers * anatomy.layer + anatomy.post == anatomy.on_device
    assert anatomy.q_width == spec.layer.q_size


def test_io_is_that_of_the_shape_groups(spec: DecoderSpec) -> None:
    """Every tensor of every group but the caches, which the groups of a layer share and `device_memory` counts."""
    recipe, sizes = RECIPES[0], {"bf16": 2, "uint32": 4}
    layers = [
        sizes[tensor.dtype] * _elements(tensor.shape)
        for group in layer_groups(spec.layer, recipe)
        for tensor in (*group.inputs, *group.outputs)
        if tensor.name not in ("K_cache", "V_cache")
    ]
    expected = spec.num_hidden_layers * sum(layers) + 2 * spec.vocab_size
    assert io_mb(anatomy_of_spec(spec), recipe) * 1e6 == pytest.approx(expected)


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


@pytest.mark.parametrize("row", [row for row in published_rows() if row.memory_kb and row.anatomy], ids=str)
def test_memory_agrees_with_measured_boards(row: Any) -> None:
    """Within 15 %, if the packages have nine groups of 128 tokens, as the vendor's have."""
    if "TP4" in row.model or "VL" in row.model:
        pytest.skip("includes a vision model, or programs for four cards")
    recipe = replace(row.recipe, prefill_len=128, last_kv_cache_len=tuple(range(128, 1152, 128)))
    memory = device_memory(recipe, row.anatomy, row.anatomy.sizes).total_mb + io_mb(row.anatomy, recipe)
    assert memory == pytest.approx(row.memory_kb * 1024 / 1e6, rel=0.15)


def test_guard_is_what_the_host_asks_for(spec: DecoderSpec) -> None:
    assert guard_mb(Recipe(), anatomy_of_spec(spec)) == pytest.approx(134.2, abs=0.3)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_hidden_layers": 5000}, "num_hidden_layers 5000 is not plausible"),
        ({"vocab_size": 2**31 - 1}, "vocab_size 2147483647 is not plausible"),
    ],
)
def test_absurd_sizes_are_refused(spec: DecoderSpec, change: dict[str, int], problem: str) -> None:
    with pytest.raises(AxzooError, match=problem.replace("+", r"\+")):
        anatomy_of_spec(replace(spec, **change))  # type: ignore[arg-type]


def test_unknown_widths_are_assumed_and_said() -> None:
    model = published_models()["Qwen2-1.5B"]
    sizes = {"layer": model.layer, "post": model.post, "kv_width": model.kv_width}
    outline = replace(model, model_type="qwen2")
    guessed = anatomy_of_sizes(outline, sizes)
    assert guessed.assumed
    assert guessed.hidden_size == pytest.approx(model.hidden_size, rel=0.35)
    known = anatomy_of_sizes(outline, {**sizes, "hidden_size": 1536, "intermediate_size": 8960})
    assert (known.q_width, known.assumed) == (1536, False)
