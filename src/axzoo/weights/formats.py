"""What a build must reach to pass, by how its weights are stored. How the numbers were found: docs/checks.md."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from axzoo.weights.recipe import INTEGER_WEIGHT_TYPES, Recipe

LARGEST = "max_abs"
"""The scale rule |w| over the largest code (127 in s8) of a row's largest weight w."""


def layer_storage(recipe: Recipe) -> dict[str, Any]:
    """Of every weight matrix of a decoder layer; a float type has no scales."""
    scaled = {"weight_group_size": recipe.weight_group_size, "scale_rule": recipe.scale_rule}
    return {**(scaled if recipe.weight_type in INTEGER_WEIGHT_TYPES else {}), "rounding": recipe.rounding}


def post_storage(recipe: Recipe) -> dict[str, Any]:
    """Of lm_head, whose rule is its own, whatever the layers' is."""
    scaled = {"weight_group_size": 0, "scale_rule": LARGEST}
    is_float = recipe.post_weight_type in ("bf16", "fp32")
    return {**({} if is_float else scaled), "rounding": Recipe.rounding}


def embedding_storage() -> dict[str, Any]:
    return {"weight_type": "bf16", "rounding": Recipe.rounding}


@dataclass(frozen=True)
class Thresholds:
    """Level 1 holds for every layer; level 2 for the generated answer, against the oracle reading the same text."""

    min_layer_cosine: float
    max_delta_l2: float
    max_mean_kl: float
    min_top1_agreement: float


FLOAT = Thresholds(min_layer_cosine=0.99999, max_delta_l2=0.01, max_mean_kl=0.01, min_top1_agreement=0.9)
BF16 = replace(FLOAT, min_layer_cosine=0.9999, max_delta_l2=0.03)
"""Of weights or hidden states in bf16, whose rounding is then most of the error; beside integer weights no type of the
hidden state tells."""
S8 = Thresholds(min_layer_cosine=0.999, max_delta_l2=0.06, max_mean_kl=0.05, min_top1_agreement=0.8)
S4_GROUPS = Thresholds(min_layer_cosine=0.85, max_delta_l2=0.5, max_mean_kl=2.5, min_top1_agreement=0.4)
S4 = Thresholds(min_layer_cosine=0.8, max_delta_l2=0.6, max_mean_kl=4.0, min_top1_agreement=0.3)
"""One scale per row: what four bits do to a model is large; what a wrong layer does is larger."""
S4_GROUPS_MSE = replace(S4_GROUPS, min_layer_cosine=0.75, max_delta_l2=0.6)
S4_MSE = replace(S4, min_layer_cosine=0.4, max_delta_l2=0.8)
"""`mse` alone lessens another error than a layer's own: it cuts off the largest weights."""
S4_GPTQ = replace(S4, max_delta_l2=0.9)
S4_MSE_GPTQ = replace(S4, min_layer_cosine=0.9, max_delta_l2=0.55)
S4_GROUPS_GPTQ = replace(S4_GROUPS, max_delta_l2=0.65)
"""GPTQ lessens what the next layers see of it over many tokens, not each token's delta."""

POST = {"fp8_e4m3": (0.1, 0.8), "fp8_e5m2": (0.5, 0.6)}
"""max_mean_kl and min_top1_agreement where the post layer costs more than the layers; it has no part in level 1."""


def thresholds_of(recipe: Recipe) -> Thresholds:
    """Those of the layers' weights; level 2's no stricter than the post layer's allow."""
    layers = _of_layers(recipe)
    kl, agreement = POST.get(recipe.post_weight_type, (0.0, 1.0))
    return replace(
        layers,
        max_mean_kl=max(layers.max_mean_kl, kl),
        min_top1_agreement=min(layers.min_top1_agreement, agreement),
    )


def _of_layers(recipe: Recipe) -> Thresholds:
    if recipe.weight_type == "s8":
        return S8
    if recipe.weight_type != "s4":
        return BF16 if "bf16" in (recipe.weight_type, recipe.hidden_state_type) else FLOAT
    by_row, by_group = {
        ("vendor", "nearest"): (S4, S4_GROUPS),
        ("mse", "nearest"): (S4_MSE, S4_GROUPS_MSE),
        ("vendor", "gptq"): (S4_GPTQ, S4_GROUPS_GPTQ),
        ("mse", "gptq"): (S4_MSE_GPTQ, S4_GROUPS_GPTQ),
    }[recipe.scale_rule, recipe.rounding]
    return by_group if recipe.weight_group_size else by_row
