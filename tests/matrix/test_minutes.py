"""Time limits and memory that jobs request on a cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from axzoo.backends import load_backend
from axzoo.matrix.entries import load_zoo
from axzoo.matrix.resources import _STAGES, parameters, part_needs, stage_needs
from axzoo.parts.kinds import KINDS, kind_of
from axzoo.weights.recipe import Recipe

CONFIG = Path(__file__).parents[2] / "config"
SMOLLM2, LLAMA_3 = 134_515_008, 8_030_261_248
LLAMA_3_SIZES = {"layer": 218_112_000, "post": 525_340_672, "kv_width": 1024}
SMOLLM2_SIZES = {"layer": 3_540_096, "post": 28_312_128, "kv_width": 192}
HOST = load_backend("host")
GPTQ = Recipe(weight_type="s4", rounding="gptq")


@pytest.mark.parametrize("stage", _STAGES)
def test_stage_needs_grow_with_the_model(stage: str) -> None:
    small, large, unknown = (stage_needs(stage, weights) for weights in (SMOLLM2, LLAMA_3, None))
    assert small.minutes < large.minutes < unknown.minutes
    assert small.mem_mb <= large.mem_mb


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_part_needs_grow_with_the_part(kind: object) -> None:
    known = [part_needs(kind, Recipe(), HOST, sizes) for sizes in (SMOLLM2_SIZES, LLAMA_3_SIZES, None)]  # type: ignore[arg-type]
    assert known[0].minutes <= known[1].minutes < known[2].minutes
    assert known[0].mem_mb <= known[1].mem_mb <= known[2].mem_mb


def test_time_limits_are_minutes() -> None:
    assert stage_needs("lock", SMOLLM2).minutes == 10 + 1  # 13 s
    assert stage_needs("check_generation", LLAMA_3).minutes == 10 + 134  # 8,030 s


def test_needs_of_a_build() -> None:
    build = next(build for build in load_zoo(CONFIG / "zoo.yaml").builds() if build.name == "Llama-2-7b-hf-w8a16")
    sizes = dict(build.sizes)
    assert build.needs("layer", 16) == HOST.needs(kind_of("layer"), Recipe(), sizes["layer"], 16)
    assert build.needs("layer", 16).minutes > build.needs("layer").minutes
    assert build.needs("post") == HOST.needs(kind_of("post"), Recipe(), sizes["post"])
    assert parameters(32, sizes) == 32 * sizes["layer"] + sizes["post"]
    assert build.needs("lock") == stage_needs("lock", parameters(32, sizes))
    calibrated = replace(build, recipe=replace(build.recipe, rounding="gptq"))
    assert calibrated.needs("layer").minutes > build.needs("layer").minutes
    assert replace(build, sizes=()).needs("layer") == HOST.needs(kind_of("layer"), Recipe(), None)


def _mem_mb(kind: str, recipe: Recipe, sizes: dict[str, int] | None) -> int:
    return part_needs(kind_of(kind), recipe, HOST, sizes).mem_mb


def test_requested_memory_is_at_most_twice_the_measured() -> None:
    """Measured with 64 MB blocks, more than today's 4 MB blocks need: 418 and 749 MB for Llama 3, 61 and 230 MB for
    SmolLM2-135M."""
    assert 418 < _mem_mb("layer", Recipe(), LLAMA_3_SIZES) < 2 * 418
    assert 749 < _mem_mb("post", Recipe(), LLAMA_3_SIZES) < 2 * 749
    assert 61 < _mem_mb("layer", Recipe(), SMOLLM2_SIZES) < 400
    assert 230 < _mem_mb("post", Recipe(), SMOLLM2_SIZES) < 460


def test_level_2_needs_the_bundles_bytes_and_calibration_a_bounded_part_of_the_model() -> None:
    """Measured with Qwen2.5-7B's dimensions (docs/performance.md)."""
    build = next(build for build in load_zoo(CONFIG / "zoo.yaml").builds() if build.name == "Llama-2-7b-hf-w8a16")
    sizes = dict(build.sizes)
    weights = parameters(32, sizes)
    assert weights < 1e6 * build.needs("check_generation").mem_mb < 1.3 * weights
    smaller = replace(build, recipe=replace(build.recipe, weight_type="s4"))
    assert smaller.needs("check_generation").mem_mb < 0.7 * build.needs("check_generation").mem_mb
    deeper = replace(build, num_hidden_layers=64)
    assert build.needs("calibrate").mem_mb == deeper.needs("calibrate").mem_mb < 4000


@pytest.mark.parametrize(("stored", "times"), [("s4", 0.5), ("bf16", 2), ("fp32", 4)])
def test_memory_depends_on_the_weight_type(stored: str, times: float) -> None:
    base = _mem_mb("layer", Recipe(), {**LLAMA_3_SIZES, "layer": 1})
    s8 = _mem_mb("layer", Recipe(), LLAMA_3_SIZES) - base
    wider = _mem_mb("layer", Recipe(weight_type=stored), LLAMA_3_SIZES) - base  # type: ignore[arg-type]
    assert wider == pytest.approx(times * s8, rel=0.01)


def test_memory_without_sizes_suffices_for_large_models() -> None:
    assert _mem_mb("layer", Recipe(), None) > _mem_mb("layer", Recipe(), LLAMA_3_SIZES)
    assert _mem_mb("post", Recipe(), None) > _mem_mb("post", Recipe(), LLAMA_3_SIZES)
    assert _mem_mb("layer", GPTQ, SMOLLM2_SIZES) == 8000
