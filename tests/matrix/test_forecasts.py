"""Forecasts of a matrix's builds: the lines of plans and reports, and where sizes come from."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from axzoo.core.errors import AxzooError
from axzoo.forecast.published import published_models
from axzoo.matrix.entries import Zoo
from axzoo.matrix.forecasts import (
    Subject,
    forecast_line,
    job_outlook,
    plan_lines,
    subject_of_build,
    subject_of_path,
    usual_recipe,
)
from axzoo.weights.recipe import Recipe

sys.path.append(str(Path(__file__).parents[1] / "fetch"))
from tiny_gguf import make_tiny

Load = Callable[[str], Zoo]

SIZES = "sizes: {layer: 46797824, post: 233375232, kv_width: 256, hidden_size: 1536, intermediate_size: 8960}"
ENTRY = f"hub: o/m, revision: main, model_type: qwen2, num_hidden_layers: 28, chips: AX650, {SIZES}"


def test_line_of_a_build(load: Load) -> None:
    (build,) = load(f"models: {{A: {{{ENTRY}}}}}").builds()
    assert list(plan_lines([build])) == [f"forecast: A-w8a16 on AX650: {forecast_line(build)}"]
    assert forecast_line(build) == (
        "about 11.5 tok/s (10.3 to 12.9), 238 ms to the first token, 2028 of 11317 MB, 2028 MB of files"
    )


def test_many_builds_are_counted(load: Load) -> None:
    (build,) = load(f"models: {{A: {{{ENTRY}}}}}").builds()
    builds = [replace(build, model=f"M{number}") for number in range(4)]
    assert list(plan_lines(builds)) == ["forecast of 4 builds: `axzoo forecast MATRIX` lists speed and memory of each"]
    assert len(list(plan_lines(builds[:3]))) == 3


def test_without_sizes_nothing_is_said(load: Load) -> None:
    (build,) = load(
        "models: {A: {hub: o/m, revision: main, model_type: qwen2, num_hidden_layers: 28, chips: AX650}}"
    ).builds()
    assert subject_of_build(build) is None
    assert list(plan_lines([build])) == []


def test_a_tight_build_is_said_to_be_tight(load: Load) -> None:
    (build,) = load(f"models: {{A: {{{ENTRY}}}}}").builds()
    assert build.memory is not None
    tight = replace(build, npu_memory_mb=build.memory.total_mb)
    assert "MB, which is tight, " in str(forecast_line(tight))


def test_a_gguf_file_is_read_without_its_weights(tmp_path: Path) -> None:
    subject = subject_of_path(make_tiny(tied=True).write(tmp_path / "tiny.gguf"))
    assert subject.name == "tiny"
    assert subject.spec is not None and subject.anatomy.num_hidden_layers == subject.spec.num_hidden_layers


def test_checkpoints_in_fp32_are_twice_as_large(tmp_path: Path) -> None:
    names = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
    config = {
        **names,
        "model_type": "llama",
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }
    sizes = []
    for dtype in ("bfloat16", "float32"):
        (tmp_path / "config.json").write_text(json.dumps(config | {"torch_dtype": dtype}))
        subject = subject_of_path(tmp_path)
        sizes.append(subject.forecast(Recipe(), "AX650", 11317).download_mb)
    assert sizes[1] == pytest.approx(2 * sizes[0], abs=1)


@pytest.mark.parametrize("is_nested", [True, False])
def test_the_language_model_of_a_vision_language_model(is_nested: bool, tmp_path: Path, load: Load) -> None:
    """Its sizes are in text_config, or beside those of the vision part."""
    sizes = {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
    }  # fmt: skip
    inner = {"text_config": {"model_type": "qwen2_5_vl_text"} | sizes} if is_nested else sizes
    config = {"model_type": "qwen2_5_vl", "vision_config": {"depth": 32}, "torch_dtype": "bfloat16", **inner}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "config.json"):
        subject = subject_of_path(path)
        assert subject.spec is not None
        assert (subject.spec.model_type, subject.anatomy.num_hidden_layers) == ("qwen2", 28)
    text = f"models: {{VL: {{path: {tmp_path}, model_type: qwen2, num_hidden_layers: 28, chips: AX650}}}}"
    (line,) = plan_lines(load(text).builds())
    assert "tok/s" in line and "VL" in line


@pytest.mark.parametrize(
    ("context", "prompt", "chunk", "longest"),
    [(None, 128, 128, 896), (2047, 128, 128, 1024), (2047, 1500, 128, 1536), (100, 20, 100, 100), (128, 128, 128, 128)],
)
def test_usual_recipe_has_groups_for_the_prompt(context: int | None, prompt: int, chunk: int, longest: int) -> None:
    """The groups end within the cache, as axllm needs it."""
    recipe = usual_recipe(Subject("m", published_models()["Qwen2-1.5B"]), "s8", context, prompt)
    assert (recipe.prefill_len, recipe.max_prompt_len) == (chunk, longest)
    assert recipe.max_prompt_len <= recipe.kv_cache_len


def test_a_prompt_beyond_the_cache_is_refused() -> None:
    subject = Subject("m", published_models()["Qwen2-1.5B"])
    recipe = usual_recipe(subject, "s8", 255, 300)
    with pytest.raises(AxzooError, match="exceeds the prefill groups, which end at token 128"):
        subject.forecast(recipe, "AX650", 11317, prompt=300)


def test_jobs_of_larger_models_take_longer_and_more_memory() -> None:
    small, large = (job_outlook(published_models()[name], Recipe()) for name in ("Qwen2-0.5B", "Llama2-7B"))
    assert small.minutes.value < large.minutes.value
    assert small.memory_mb < large.memory_mb
    assert small.vendor_minutes.low < 42 < small.vendor_minutes.high  # published: 303 s with 8 workers, then 85 s
    assert large.vendor_minutes.low < 127 < large.vendor_minutes.high  # published for Qwen2.5-7B with one worker
