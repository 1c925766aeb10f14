"""Contradictory recipes are refused, and the message says which value would be valid."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axzoo.core.errors import AxzooError
from axzoo.weights.formats import tag
from axzoo.weights.recipe import (
    HIDDEN_STATE_TYPES,
    INTEGER_WEIGHT_TYPES,
    ROUNDINGS,
    SCALE_RULES,
    WEIGHT_GROUP_SIZES,
    WEIGHT_TYPES,
    Recipe,
)


def test_the_documented_defaults() -> None:
    recipe = Recipe()
    assert (recipe.weight_type, recipe.post_weight_type, recipe.hidden_state_type) == ("s8", "s8", "bf16")
    assert (recipe.prefill_len, recipe.kv_cache_len, recipe.last_kv_cache_len) == (128, 1023, ())
    assert (tag(recipe), recipe.max_prompt_len) == ("w8a16", 128)


@pytest.mark.parametrize(
    "weight, state, expected", [("fp32", "fp32", "w32a32"), ("bf16", "bf16", "w16a16"), ("fp16", "bf16", "w16fa16")]
)
def test_tags(weight: Any, state: Any, expected: str) -> None:
    assert tag(Recipe(weight_type=weight, hidden_state_type=state)) == expected


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"weight_type": "s4"}, "w4a16"),
        ({"weight_type": "s4", "weight_group_size": 32}, "w4a16-g32"),
        ({"scale_rule": "mse"}, "w8a16-mse"),
        ({"weight_type": "s4", "rounding": "gptq", "weight_group_size": 128}, "w4a16-g128-gptq"),
        ({"weight_type": "s4", "scale_rule": "mse", "rounding": "gptq"}, "w4a16-mse-gptq"),
    ],
)
def test_tags_include_scale_rule_and_rounding(values: dict[str, Any], expected: str) -> None:
    assert tag(Recipe(**values)) == expected


def test_different_choices_have_different_tags() -> None:
    tags = []
    for weight, state in product(WEIGHT_TYPES, HIDDEN_STATE_TYPES):
        extras = [("vendor", "nearest", 0)]
        if weight in INTEGER_WEIGHT_TYPES:
            extras = list(product(SCALE_RULES, ROUNDINGS, WEIGHT_GROUP_SIZES))
        for rule, rounding, group in extras:
            recipe = Recipe(
                weight_type=weight, hidden_state_type=state, scale_rule=rule, rounding=rounding, weight_group_size=group
            )
            tags.append(tag(recipe))
    assert len(set(tags)) == len(tags)


@given(st.data())
def test_recipe_round_trip_through_json(data: st.DataObject) -> None:
    chunks, prefill = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 64))
    recipe = Recipe(
        weight_type=data.draw(st.sampled_from(INTEGER_WEIGHT_TYPES)),
        scale_rule=data.draw(st.sampled_from(SCALE_RULES)),
        rounding=data.draw(st.sampled_from(ROUNDINGS)),
        weight_group_size=data.draw(st.sampled_from(WEIGHT_GROUP_SIZES)),
        prefill_len=prefill,
        kv_cache_len=1023,
        last_kv_cache_len=tuple(prefill * (chunk + 1) for chunk in range(chunks)),
        post_topk=data.draw(st.integers(0, 9)),
        ret_postnorm=data.draw(st.booleans()),
    )
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_missing_recipe_fields_have_defaults() -> None:
    assert Recipe.from_dict({}) == Recipe()
    without = {key: value for key, value in Recipe(kv_cache_len=511).to_dict().items() if key != "post_topk"}
    assert Recipe.from_dict(without) == Recipe(kv_cache_len=511)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "a recipe must be a JSON object"),
        ({"weight": "s8"}, "recipe: unknown key 'weight': use one of weight_type"),
        ({"weight_type": "s3"}, "weight_type is 's3', but must be 'fp32' or"),
        ({"weight_group_size": False}, "weight_group_size is False"),
        ({"kv_cache_len": "1023"}, "kv_cache_len is '1023', but must be an integer"),
        ({"prefill_len": True}, "prefill_len is True, but must be an integer"),
        ({"last_kv_cache_len": 128}, "last_kv_cache_len is 128, but must be a list"),
        ({"last_kv_cache_len": ["128"]}, "but must be a list of integers"),
        ({"ret_postnorm": 1}, "ret_postnorm is 1, but must be true or false"),
    ],
)
def test_invalid_recipe_json(data: Any, message: str) -> None:
    with pytest.raises(AxzooError, match=message):
        Recipe.from_dict(data)


def test_the_groups_limit_the_prompt() -> None:
    assert Recipe(last_kv_cache_len=tuple(range(128, 1024, 128))).max_prompt_len == 1024
    assert Recipe(prefill_len=0).max_prompt_len == 0


@pytest.mark.parametrize(
    "values, message",
    [
        ({"kv_cache_len": 0, "prefill_len": 0}, "kv_cache_len 0 is too small: it must be at least 1"),
        ({"kv_cache_len": -5}, "kv_cache_len -5 is too small"),
        ({"prefill_len": -1}, "prefill_len -1 is negative: use 0"),
        (
            {"prefill_len": 129, "kv_cache_len": 127},
            "kv_cache_len 127 is too small .* raise kv_cache_len to at least 128",
        ),
        ({"last_kv_cache_len": (256,)}, r"last_kv_cache_len \[256\] must be \[128\]"),
        ({"last_kv_cache_len": (128, 128)}, r"must be \[128, 256\]"),
        ({"last_kv_cache_len": (256, 128)}, r"must be \[128, 256\]"),
        ({"last_kv_cache_len": (0,)}, r"must be \[128\]"),
        ({"prefill_len": 0, "last_kv_cache_len": (0,)}, "last_kv_cache_len requires .* prefill_len is 0: raise"),
        ({"prefill_len": 0, "last_kv_cache_len": (128,)}, "prefill_len is 0"),
        (
            {"weight_type": "bf16", "weight_group_size": 32},
            "weight_group_size 32 requires integer .* is bf16: use s8 or s4",
        ),
        ({"weight_type": "fp32", "scale_rule": "mse"}, "scale_rule mse requires integer weights"),
        ({"weight_type": "fp16", "rounding": "gptq"}, "rounding gptq requires integer weights"),
        ({"post_topk": -1}, "post_topk -1 is negative: use 0"),
        ({"kv_cache_len": 254, "last_kv_cache_len": (128,)}, "end at token 256: raise kv_cache_len to at least 255"),
    ],
)
def test_contradictions(values: dict[str, Any], message: str) -> None:
    with pytest.raises(AxzooError, match=message):
        Recipe(**values)


@given(prefill=st.integers(-2, 9), cache=st.integers(-2, 40), last=st.lists(st.integers(0, 30), max_size=3))
def test_accepted_recipes_are_consistent(prefill: int, cache: int, last: list[int]) -> None:
    try:
        recipe = Recipe(prefill_len=prefill, kv_cache_len=cache, last_kv_cache_len=tuple(last))
    except AxzooError:
        return
    assert 0 <= recipe.max_prompt_len <= recipe.kv_cache_len + 1
    assert len(set(recipe.last_kv_cache_len)) == len(last)


def test_parts_depend_only_on_their_own_fields() -> None:
    recipe = Recipe()
    post_only, layer_only = replace(recipe, post_weight_type="bf16"), replace(recipe, kv_cache_len=255)
    assert post_only.for_layers() == recipe.for_layers()
    assert post_only.for_post() != recipe.for_post()
    assert layer_only.for_layers() != recipe.for_layers()
    assert layer_only.for_post() == recipe.for_post()
    both = replace(recipe, hidden_state_type="fp32")
    assert both.for_layers() != recipe.for_layers()
    assert both.for_post() != recipe.for_post()
    by_host = replace(recipe, embedding_scale="host")
    assert by_host.for_layers() == {**recipe.for_layers(), "embedding_scale": "host"}
    image = replace(recipe, image_size=448)
    assert image.for_vision() != recipe.for_vision()
    assert image.for_layers() == recipe.for_layers()
    fields = {*by_host.for_layers(), *recipe.for_post(), *recipe.for_vision()}
    assert fields == set(Recipe.__dataclass_fields__)
