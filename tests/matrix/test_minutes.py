"""How long jobs may take on a cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from axzoo.matrix.entries import load_zoo
from axzoo.matrix.resources import Stage, minutes

CONFIG = Path(__file__).parents[2] / "config"
SMOLLM2, LLAMA_3 = 134_515_008, 8_030_261_248


@pytest.mark.parametrize("stage", get_args(Stage))
def test_a_larger_model_may_take_longer_and_an_unknown_one_longest(stage: Stage) -> None:
    assert minutes(stage, SMOLLM2) < minutes(stage, LLAMA_3) < minutes(stage, None)


def test_it_is_in_minutes() -> None:
    assert minutes("lock", SMOLLM2) == 10 + 1  # 13 s
    assert minutes("check_generation", LLAMA_3) == 10 + 134  # 8,030 s


def test_a_job_may_take_as_long_as_what_it_makes() -> None:
    build = next(build for build in load_zoo(CONFIG / "zoo.yaml").builds() if build.name == "Llama-2-7b-hf-w8a16")
    layer, post, _ = build.sizes
    assert build.minutes("layer", 16) == minutes("layer", 16 * layer)
    assert build.minutes("post") == minutes("post", post)
    assert build.minutes("lock") == minutes("lock", 32 * layer + post)
    by_gptq = replace(build, recipe=replace(build.recipe, rounding="gptq"))
    assert by_gptq.minutes("layer") == minutes("gptq_layer", layer)
    assert replace(build, sizes=()).minutes("layer") == minutes("layer", None)
