"""Every way to store weights with every hidden state type and every post layer builds, loads and passes level 1.

One store serves them all: a layer's file does not depend on the post layer's type, nor the post layer's on the layers'.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle, pairwise, product
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - teaches numpy the name bfloat16
import numpy as np
import pytest
import torch

from axzoo.bundle.completion import complete_bundle
from axzoo.check.layers import check_layers
from axzoo.check.metrics import relative_l2
from axzoo.check.oracles import bundle_oracle, in_memory
from axzoo.model.oracle import Oracle, post
from axzoo.parts.checkpoint_oracle import checkpoint_oracle
from axzoo.runtime.bundle_folder import Bundle, open_bundle
from axzoo.runtime.engine import InferenceSession
from axzoo.weights.formats import (
    BF16,
    FLOAT,
    S4,
    S4_GPTQ,
    S4_GROUPS,
    S4_GROUPS_GPTQ,
    S4_GROUPS_MSE,
    S4_MSE,
    S4_MSE_GPTQ,
    S8,
    Thresholds,
    thresholds_of,
)
from axzoo.weights.recipe import HIDDEN_STATE_TYPES, POST_WEIGHT_TYPES, WEIGHT_TYPES, PostWeightType, Recipe
from tiny_model import LAYERS, Checkpoint, build, make_checkpoint

IDS = [int(i) for i in np.random.default_rng(3).integers(0, 256, 12)]
BASE = Recipe(prefill_len=8, kv_cache_len=15, last_kv_cache_len=(8,))
WEIGHTS: dict[str, dict[str, Any]] = {
    **{name: {"weight_type": name} for name in WEIGHT_TYPES},
    "s8 g32 mse": {"weight_type": "s8", "weight_group_size": 32, "scale_rule": "mse"},
    "s4 g32": {"weight_type": "s4", "weight_group_size": 32},
    "s4 g64": {"weight_type": "s4", "weight_group_size": 64},
    "s4 mse": {"weight_type": "s4", "scale_rule": "mse"},
}
POST_OF = dict(zip(WEIGHTS, cycle(POST_WEIGHT_TYPES), strict=False))
COMBINATIONS = list(product(WEIGHT_TYPES, HIDDEN_STATE_TYPES, POST_WEIGHT_TYPES)) + [
    (weights, state, POST_OF[weights])
    for weights in WEIGHTS
    if weights not in WEIGHT_TYPES
    for state in HIDDEN_STATE_TYPES
]

POST_ERRORS: dict[PostWeightType, float] = {"fp32": 1e-5, "bf16": 0.003, "s8": 0.01, "fp8_e4m3": 0.04, "fp8_e5m2": 0.08}
"""Relative L2 error of the logits: about that of the weights, at most half a step of a 7, 3 or 2 bit mantissa."""
STATE_ERRORS = {"fp32": 0.0, "fp16": 0.001, "bf16": 0.004}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A llama whose rows are all multiples of 64."""
    return make_checkpoint(
        tmp_path_factory.mktemp("wide"), {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.15}
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.mark.parametrize(("weights", "state", "post_type"), COMBINATIONS)
def test_every_combination_passes_level_1(
    wide: Checkpoint, store: Path, weights: str, state: Any, post_type: Any, tmp_path: Path
) -> None:
    recipe = replace(BASE, **WEIGHTS[weights], post_weight_type=post_type, hidden_state_type=state)
    (tmp_path / "store").symlink_to(store)
    built = build(wide, recipe, tmp_path)
    complete_bundle(built.plan)
    bundle = open_bundle(built.folder)
    oracle = in_memory(checkpoint_oracle(built.locks, built.source, recipe.positions))
    checks = list(check_layers(bundle, oracle, IDS, recipe))
    assert len(checks) == LAYERS
    assert [check.faults for check in checks] == [()] * LAYERS
    assert [check.exceeds(thresholds_of(recipe)) for check in checks] == [[]] * LAYERS
    assert _post_error(bundle, oracle) < POST_ERRORS[recipe.post_weight_type] + STATE_ERRORS[state]


def test_layers_and_post_layer_do_not_depend_on_each_others_types() -> None:
    for weights, post_type in product(WEIGHTS.values(), POST_WEIGHT_TYPES):
        recipe = replace(BASE, **weights, post_weight_type=post_type)
        assert recipe.for_layers() == replace(recipe, post_weight_type="s8").for_layers()
        assert recipe.for_post() == replace(BASE, post_weight_type=post_type).for_post()
    assert set(POST_OF.values()) == set(POST_WEIGHT_TYPES)


def _post_error(bundle: Bundle, oracle: Oracle) -> float:
    session = InferenceSession(bundle.post)
    (node,) = session.get_inputs()
    row = np.random.default_rng(0).standard_normal(node.shape).astype(node.dtype)
    (found,) = session.run(None, {"input": row})
    wanted = post(oracle.spec.post, oracle.post_weights(), torch.from_numpy(row.astype(np.float32)))
    return relative_l2(found.astype(np.float32).ravel(), wanted.numpy().ravel())


@pytest.mark.parametrize("weights", WEIGHTS)
def test_files_agree_with_an_oracle_on_their_dequantized_weights(
    wide: Checkpoint, weights: str, tmp_path: Path
) -> None:
    """With the weights that onnx reads from the files, only fp32 rounding errors remain."""
    recipe = replace(BASE, **WEIGHTS[weights], post_weight_type=POST_OF[weights], hidden_state_type="fp32")
    built = build(wide, recipe, tmp_path)
    complete_bundle(built.plan)
    bundle, oracle = open_bundle(built.folder), bundle_oracle(built.folder)
    for check in check_layers(bundle, oracle, IDS, recipe):
        assert max(check.prefill.delta_l2_p95, check.decode.delta_l2_p95) < 1e-5
    assert _post_error(bundle, oracle) < 1e-5


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"weight_type": "fp32"}, BF16),
        ({"weight_type": "bf16", "hidden_state_type": "fp16"}, BF16),
        ({"weight_type": "fp16", "hidden_state_type": "fp32"}, FLOAT),
        ({"weight_type": "fp32", "hidden_state_type": "fp32"}, FLOAT),
        ({"weight_group_size": 32, "scale_rule": "mse", "hidden_state_type": "fp32"}, S8),
        ({"weight_type": "s4"}, S4),
        ({"weight_type": "s4", "scale_rule": "mse"}, S4_MSE),
        ({"weight_type": "s4", "rounding": "gptq"}, S4_GPTQ),
        ({"weight_type": "s4", "scale_rule": "mse", "rounding": "gptq"}, S4_MSE_GPTQ),
        ({"weight_type": "s4", "weight_group_size": 128}, S4_GROUPS),
        ({"weight_type": "s4", "weight_group_size": 64, "scale_rule": "mse"}, S4_GROUPS_MSE),
        ({"weight_type": "s4", "weight_group_size": 32, "rounding": "gptq"}, S4_GROUPS_GPTQ),
        ({"weight_type": "s4", "weight_group_size": 32, "scale_rule": "mse", "rounding": "gptq"}, S4_GROUPS_GPTQ),
    ],
)
def test_every_recipe_has_its_thresholds(given: dict[str, Any], wanted: Thresholds) -> None:
    assert thresholds_of(Recipe(**given)) == wanted


def test_coarser_formats_have_looser_thresholds() -> None:
    rows = [FLOAT, BF16, S8, S4_GROUPS, S4, S4_MSE]
    for strict, loose in [*pairwise(rows), (S4_GROUPS, S4_GROUPS_MSE), (S4_GROUPS_GPTQ, S4_GPTQ), (S4_MSE_GPTQ, S4)]:
        assert strict.min_layer_cosine > loose.min_layer_cosine
        assert strict.max_delta_l2 < loose.max_delta_l2 < 1  # a layer that adds nothing has an error of 1


def test_the_post_layer_does_not_affect_level_1_and_may_loosen_level_2() -> None:
    for weight_type, post_type in product(WEIGHT_TYPES, POST_WEIGHT_TYPES):
        layers = thresholds_of(Recipe(weight_type=weight_type))
        both = thresholds_of(Recipe(weight_type=weight_type, post_weight_type=post_type))
        assert (both.min_layer_cosine, both.max_delta_l2) == (layers.min_layer_cosine, layers.max_delta_l2)
        assert both.max_mean_kl >= layers.max_mean_kl
        assert both.min_top1_agreement <= layers.min_top1_agreement
    assert thresholds_of(Recipe(weight_type="bf16", post_weight_type="fp8_e5m2")).max_mean_kl > FLOAT.max_mean_kl
