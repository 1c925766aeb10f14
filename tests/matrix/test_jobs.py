"""Batches of parts and their Snakemake rules."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axzoo.matrix.batches import PartRule, part_rules, parts_per_job, split, stage_of
from axzoo.weights.recipe import Recipe

LLAMA_3_LAYER = 218_112_000
PREFILL, DECODE = Recipe(), Recipe(prefill_len=0)


@dataclass(frozen=True)
class Model:
    model: str
    num_hidden_layers: int
    recipe: Recipe = PREFILL
    model_type: str = "llama"
    size_table: dict[str, int] | None = None


def _layer_rules(*models: Model, most: int | None = None) -> list[PartRule]:
    return [rule for rule in part_rules(models, most) if rule.kind.name == "layer"]


@given(st.integers(1, 200), st.integers(1, 40))
def test_batches_cover_all_layers_in_few_equal_parts(layers: int, most: int) -> None:
    batches = split(layers, most)
    assert [int(number) for batch in batches for number in batch] == list(range(layers))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert (len(batches) - 1) * most < layers


def test_only_small_layers_share_a_job() -> None:
    assert parts_per_job(1000) == 16
    assert parts_per_job(14_900_000) == 8
    assert parts_per_job(30_000_000) == 4
    assert parts_per_job(30_000_001) == 1
    assert parts_per_job(LLAMA_3_LAYER) == 1


def test_sizes_determine_batches_unless_overridden() -> None:
    small = Model("a", 4, size_table={"layer": 1000, "post": 1, "kv_width": 1})
    assert [rule.name for rule in part_rules([small])] == ["layers_0_3", "post", "embed"]
    assert [rule.name for rule in part_rules([small], 2)] == ["layers_0_1", "layers_2_3", "post", "embed"]
    assert [rule.name for rule in part_rules([small], 1)] == ["layer", "post", "embed"]
    assert [rule.name for rule in part_rules([replace(small, size_table=None)])] == ["layer", "post", "embed"]


def test_models_with_equal_batches_share_a_rule() -> None:
    rules = _layer_rules(Model("a", 4), Model("b", 2), Model("d", 3, DECODE), most=2)
    assert [(rule.name, rule.models) for rule in rules] == [
        ("layers_0_1", ("a", "b")),
        ("layers_2_3", ("a",)),
        ("layers_0_0_decode", ("d",)),
        ("layers_1_2_decode", ("d",)),
    ]
    (any_layer,) = _layer_rules(Model("a", 4), Model("c", 80), most=1)
    assert (any_layer.name, any_layer.models) == ("layer", ("a", "c"))


def test_prefill_and_decode_only_builds_have_separate_rules() -> None:
    rules = _layer_rules(Model("a", 2), Model("a", 2, DECODE), Model("a", 2), most=2)
    assert [(rule.name, rule.models) for rule in rules] == [("layers_0_1", ("a",)), ("layers_0_1_decode", ("a",))]


@pytest.mark.parametrize(
    ("recipe", "most", "rule", "log", "files"),
    [
        (Recipe(), 2, "layers_0_1", "{stem}_l0-1_together", ["{stem}_l0_together", "{stem}_l1_together"]),
        (DECODE, 2, "layers_0_1_decode", "{stem}_l0-1", ["{stem}_l0", "{stem}_l1"]),
        (Recipe(), 1, "layer", "{stem}_l{index}_together", ["{stem}_l{index}_together"]),
        (DECODE, 1, "layer_decode", "{stem}_l{index}", ["{stem}_l{index}"]),
    ],
)
def test_rules_logs_and_files_are_named_after_the_layers(
    recipe: Recipe, most: int, rule: str, log: str, files: list[str]
) -> None:
    (batch,) = _layer_rules(Model("a", 2, recipe), most=most)
    assert (batch.name, batch.log_name) == (rule, log)
    assert batch.files == [f"{file}.axmodel" for file in files]
    assert batch.receipts == [f"{file}.json" for file in files]
    numbers = ["0", "1"] if most == 2 else ["{index}"]
    assert batch.locks == [f"layer_{number}.json" for number in numbers]
    assert batch.parts == len(numbers)


def test_parts_without_an_index() -> None:
    post, embed = part_rules([Model("a", 2)])[1:]
    assert (post.files, post.locks, post.log_name) == (["{stem}_post.axmodel"], ["post.json"], "{stem}_post")
    assert embed.files == ["model.embed_tokens.weight.bfloat16.bin"]
    assert embed.receipts == ["model.embed_tokens.weight.bfloat16.json"]


@given(st.integers(1, 100), st.integers(1, 20), st.booleans())
def test_stage_of_a_rule_name(layers: int, most: int, decode: bool) -> None:
    for rule in part_rules([Model("a", layers, DECODE if decode else Recipe())], most):
        assert stage_of(rule.name) == (rule.kind.name, rule.parts)
    assert stage_of("check_layers") == ("check_layers", 1)
    assert stage_of("lock") == ("lock", 1)
