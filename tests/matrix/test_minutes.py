"""Time limits and memory that jobs request on a cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from axzoo.backends import load_backend
from axzoo.forecast.sizes import parameters
from axzoo.matrix.entries import load_zoo
from axzoo.matrix.resources import _STAGES, part_needs, stage_needs
from axzoo.parts.kinds import KINDS, kind_of
from axzoo.weights.recipe import Recipe

CONFIG = Path(__file__).parents[2] / "config"
SMOLLM2, LLAMA_3 = 134_515_008, 8_030_261_248
LLAMA_3_SIZES = {"layer": 218_112_000, "post": 525_340_672, "kv_width": 1024}
LLAMA_3_WIDTHS = {"hidden_size": 4096, "intermediate_size": 14336}
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
    assert parameters(build, build.recipe, sizes) == 32 * sizes["layer"] + sizes["post"]
    assert build.needs("lock") == stage_needs("lock", parameters(build, build.recipe, sizes))
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
    weights = parameters(build, build.recipe, sizes)
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
    assert _mem_mb("layer", GPTQ, None) > _mem_mb("layer", GPTQ, LLAMA_3_SIZES | LLAMA_3_WIDTHS)


@pytest.mark.parametrize(
    ("hidden", "inner", "parameters", "tokens", "measured"),
    [
        (512, 1024, 2_600_000, 2048, 381),
        (512, 1024, 2_600_000, 8192, 555),
        (512, 4096, 7_300_000, 1024, 611),
        (896, 4864, 14_900_000, 8192, 1196),
        (2048, 8192, 60_800_000, 2048, 2075),
    ],
)
def test_memory_of_gptq_rounding_follows_tokens_and_widths(
    hidden: int, inner: int, parameters: int, tokens: int, measured: int
) -> None:
    """Peak memory in MB of `gptq_weights` for random layers of these shapes."""
    sizes = {"layer": parameters, "post": 1, "kv_width": 1, "hidden_size": hidden, "intermediate_size": inner}
    requested = part_needs(kind_of("layer"), GPTQ, HOST, sizes, 1, tokens).mem_mb
    assert measured < requested < 1.5 * measured
    del sizes["hidden_size"], sizes["intermediate_size"]
    assert part_needs(kind_of("layer"), GPTQ, HOST, sizes, 1, tokens).mem_mb > measured


def test_memory_of_calibration_follows_tokens_and_widths() -> None:
    build, *_ = load_zoo(CONFIG / "zoo.yaml", CONFIG / "chips.yaml").builds_of("Qwen2-0.5B-Instruct")
    narrow = dict(build.sizes) | {"hidden_size": 896, "intermediate_size": 4864}
    wide = narrow | {"hidden_size": 2 * 896}

    def needs(sizes: dict[str, int], tokens: int) -> int:
        return replace(build, sizes=tuple(sizes.items()), calibration_tokens=tokens).needs("calibrate").mem_mb

    assert needs(narrow, 8192) < needs(narrow, 65536) < needs(wide, 65536)
    states = 3 * 4 * 896 * (65536 - 8192) / 1e6
    assert needs(narrow, 65536) - needs(narrow, 8192) == pytest.approx(states, abs=1)


def test_widths_reach_the_jobs_from_the_matrix(tmp_path: Path) -> None:
    matrix = tmp_path / "zoo.yaml"
    for widths in ("", ", hidden_size: 64, intermediate_size: 96"):
        sizes = f"{{layer: 50000, post: 17000, kv_width: 32{widths}}}"
        entry = f"path: x, model_type: llama, num_hidden_layers: 2, chips: AX650, rounding: gptq, sizes: {sizes}"
        matrix.write_text(f"models: {{A: {{{entry}}}}}")
        (build,) = load_zoo(matrix, CONFIG / "chips.yaml").builds()
        assert dict(build.sizes).get("hidden_size") == (64 if widths else None)
        assert ("hidden_size" in build.size_arguments[1]) == bool(widths)
        assert build.needs("layer") == part_needs(kind_of("layer"), build.recipe, HOST, dict(build.sizes))
