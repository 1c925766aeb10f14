"""How compiling is cut into jobs, and what they are said to need."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axzoo.matrix.batches import (
    ANY_ENDING,
    ANY_LAYER,
    DECODE_ONLY,
    WITH_PREFILL,
    Batch,
    batches,
    layers_per_job,
    split,
    stage_of,
)
from axzoo.matrix.resources import check_mem_mb, layer_mem_mb, post_mem_mb
from axzoo.weights.recipe import Recipe

LLAMA_3_LAYER, LLAMA_3_POST = 218_112_000, 525_340_672


@given(st.integers(1, 200), st.integers(1, 40))
def test_batches_hold_every_layer_once_and_are_as_few_and_equal_as_can_be(layers: int, most: int) -> None:
    made = split(layers, most)
    assert [int(number) for batch in made for number in batch] == list(range(layers))
    sizes = [len(batch) for batch in made]
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert (len(made) - 1) * most < layers


def test_small_layers_share_a_job_and_large_ones_do_not() -> None:
    assert layers_per_job(1000) == 16
    assert layers_per_job(14_900_000) == 8
    assert layers_per_job(30_000_000) == 4
    assert layers_per_job(30_000_001) == 1
    assert layers_per_job(LLAMA_3_LAYER) == 1


def test_models_with_equal_batches_share_a_rule() -> None:
    models = [
        ("a", 4, 2, WITH_PREFILL),
        ("b", 2, 2, WITH_PREFILL),
        ("c", 80, 1, WITH_PREFILL),
        ("d", 3, 1, DECODE_ONLY),
    ]
    assert batches(models) == [
        Batch(("0", "1"), WITH_PREFILL, ("a", "b")),
        Batch(("2", "3"), WITH_PREFILL, ("a",)),
        Batch((ANY_LAYER,), ANY_ENDING, ("c", "d")),
    ]


def test_a_model_with_and_without_prefill_groups_has_batches_of_both() -> None:
    assert batches([("a", 2, 2, WITH_PREFILL), ("a", 2, 2, DECODE_ONLY), ("a", 2, 2, WITH_PREFILL)]) == [
        Batch(("0", "1"), WITH_PREFILL, ("a",)),
        Batch(("0", "1"), DECODE_ONLY, ("a",)),
    ]


@pytest.mark.parametrize(
    ("batch", "rule", "log", "names"),
    [
        (Batch(("0", "1"), WITH_PREFILL, ()), "layers_0_1", "{stem}_l0-1_together", ["0_together", "1_together"]),
        (Batch(("0", "1"), DECODE_ONLY, ()), "layers_0_1_decode", "{stem}_l0-1", ["0", "1"]),
        (Batch(("7",), WITH_PREFILL, ()), "layers_7_7", "{stem}_l7_together", ["7_together"]),
        (Batch((ANY_LAYER,), ANY_ENDING, ()), "layer", "{stem}_l{layer}{together}", ["{layer}{together}"]),
    ],
)
def test_rules_logs_and_files_are_called_by_the_layers(batch: Batch, rule: str, log: str, names: list[str]) -> None:
    assert (batch.rule, batch.log_name) == (rule, log)
    assert batch.names == [f"{{stem}}_l{name}" for name in names]
    assert stage_of(batch.rule) == ("layer", len(batch.layers))


@pytest.mark.parametrize("rule", ["post", "lock", "layers_0", "layers_a_b", "my_layers_0_1"])
def test_a_rule_that_is_not_a_batch_is_its_own_stage(rule: str) -> None:
    assert stage_of(rule) == (rule, 1)


def test_memory_asked_for_is_above_what_was_measured_and_not_far() -> None:
    """With blocks of 64 MB, which took more than today's of 4: 418 and 749 MB for Llama 3, 61 and 230 for
    SmolLM2-135M."""
    assert 418 < layer_mem_mb(Recipe(), LLAMA_3_LAYER) < 2 * 418
    assert 749 < post_mem_mb(Recipe(), LLAMA_3_POST) < 2 * 749
    assert 61 < layer_mem_mb(Recipe(), 3_540_096) < 400
    assert 230 < post_mem_mb(Recipe(), 28_312_128) < 460
    assert 1272 < check_mem_mb(30 * 3_540_096 + 28_312_128) < 2 * 1272


@pytest.mark.parametrize(("stored", "times"), [("s4", 0.5), ("bf16", 2), ("fp32", 4)])
def test_wider_weights_need_more(stored: str, times: float) -> None:
    base = layer_mem_mb(Recipe(), 1)
    s8 = layer_mem_mb(Recipe(), LLAMA_3_LAYER) - base
    assert layer_mem_mb(Recipe(weight_type=stored), LLAMA_3_LAYER) - base == pytest.approx(times * s8, rel=0.01)


def test_without_sizes_there_is_room_for_the_largest() -> None:
    assert layer_mem_mb(Recipe(), None) > layer_mem_mb(Recipe(), LLAMA_3_LAYER)
    assert post_mem_mb(Recipe(), None) > post_mem_mb(Recipe(), LLAMA_3_POST)
    assert layer_mem_mb(Recipe(weight_type="s4", rounding="gptq"), 1000) == 8000
