"""The one table of weight formats: bytes, tag, scales, calibration and check thresholds of every way to store weights.

`axzoo.weights.recipe` names the choices, this table says what follows from each. Nothing here determines the bytes of a
compiled file, so a changed threshold or estimate rebuilds no layer. docs/checks.md says how the thresholds were found,
docs/performance.md how the bytes were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from axzoo.weights.recipe import Recipe


@dataclass(frozen=True)
class Thresholds:
    """Limits of the checks: level 1's hold for every layer, level 2's for the generated answer."""

    min_layer_cosine: float
    max_delta_l2: float
    max_mean_kl: float
    min_top1_agreement: float


Way = tuple[str, str, bool]
"""How integers are chosen: scale_rule, rounding, and whether there are groups."""


@dataclass(frozen=True)
class StorageFormat:
    """A type that weights or hidden states are stored in.

    `bytes_stored` is the size of one value in a file, `bytes_on_device` the memory a weight takes on the board with
    overhead. `tag` names the type in a bundle's name. `has_scales`: integers and fp8 are stored under scales.
    `thresholds` hold for layers stored in this type, `by_way` where a scale rule or rounding needs its own; None for a
    type that only the post layer has. `post` are max_mean_kl and min_top1_agreement where a post layer of this type
    costs more than the layers do.
    """

    tag: str
    bytes_stored: float
    bytes_on_device: float
    thresholds: Thresholds | None
    has_scales: bool = False
    by_way: Mapping[Way, Thresholds] = field(default_factory=dict)
    post: tuple[float, float] = (0.0, 1.0)


FLOAT = Thresholds(min_layer_cosine=0.99999, max_delta_l2=0.01, max_mean_kl=0.01, min_top1_agreement=0.9)
BF16 = replace(FLOAT, min_layer_cosine=0.9999, max_delta_l2=0.03)
"""Weights or hidden states in bf16, whose rounding then makes most of the error."""
S8 = Thresholds(min_layer_cosine=0.999, max_delta_l2=0.06, max_mean_kl=0.05, min_top1_agreement=0.8)
S4 = Thresholds(min_layer_cosine=0.8, max_delta_l2=0.6, max_mean_kl=4.0, min_top1_agreement=0.3)
S4_MSE = replace(S4, min_layer_cosine=0.4, max_delta_l2=0.8)
"""The mse rule alone clips the largest weights, which a single layer feels."""
S4_GPTQ = replace(S4, max_delta_l2=0.9)
"""GPTQ reduces the error summed over many tokens, not the delta of each token."""
S4_MSE_GPTQ = replace(S4, min_layer_cosine=0.9, max_delta_l2=0.55)
S4_GROUPS = Thresholds(min_layer_cosine=0.85, max_delta_l2=0.5, max_mean_kl=2.5, min_top1_agreement=0.4)
S4_GROUPS_MSE = replace(S4_GROUPS, min_layer_cosine=0.75, max_delta_l2=0.6)
S4_GROUPS_GPTQ = replace(S4_GROUPS, max_delta_l2=0.65)

FORMATS: Mapping[str, StorageFormat] = {
    "fp32": StorageFormat("32", 4, 4, FLOAT),
    "fp16": StorageFormat("16f", 2, 4, FLOAT),
    "bf16": StorageFormat("16", 2, 4, BF16),
    "s8": StorageFormat("8", 1, 1.164, S8, has_scales=True),
    "s4": StorageFormat(
        "4",
        0.5,
        0.596,
        S4,
        has_scales=True,
        by_way={
            ("mse", "nearest", False): S4_MSE,
            ("vendor", "gptq", False): S4_GPTQ,
            ("mse", "gptq", False): S4_MSE_GPTQ,
            ("vendor", "nearest", True): S4_GROUPS,
            ("mse", "nearest", True): S4_GROUPS_MSE,
            ("vendor", "gptq", True): S4_GROUPS_GPTQ,
            ("mse", "gptq", True): S4_GROUPS_GPTQ,
        },
    ),
    "fp8_e4m3": StorageFormat("8e4m3", 1, 4, None, has_scales=True, post=(0.1, 0.8)),
    "fp8_e5m2": StorageFormat("8e5m2", 1, 4, None, has_scales=True, post=(0.5, 0.6)),
}
"""By the names recipes use. On the device, s8 and s4 are as measured on boards; every float type takes four bytes."""

CALIBRATED_ROUNDINGS = frozenset({"gptq"})
"""Roundings that need the hidden states `axzoo calibrate` records."""

_POST_SCALE_RULE = "max_abs"
"""lm_head's rule: max|w| of a row over the largest number of the stored type, 127 in s8."""


def is_calibrated(recipe: Recipe) -> bool:
    """Whether the layers' codes depend on calibration."""
    return recipe.rounding in CALIBRATED_ROUNDINGS


def tag(recipe: Recipe) -> str:
    """A build's short name, as on model cards: w8a16, w4a16-g32-mse-gptq. 16 is bf16, 16f is fp16."""
    words = [f"w{FORMATS[recipe.weight_type].tag}a{FORMATS[recipe.hidden_state_type].tag}"]
    words += [f"g{recipe.weight_group_size}"] if recipe.weight_group_size else []
    words += [recipe.scale_rule] if recipe.scale_rule != Recipe.scale_rule else []
    words += [recipe.rounding] if recipe.rounding != Recipe.rounding else []
    return "-".join(words)


def layer_storage(recipe: Recipe) -> dict[str, Any]:
    """How every weight matrix of a decoder layer is stored, for manifests; a float type has no scales."""
    scales = {"weight_group_size": recipe.weight_group_size, "scale_rule": recipe.scale_rule}
    return {**(scales if FORMATS[recipe.weight_type].has_scales else {}), "rounding": recipe.rounding}


def post_storage(recipe: Recipe) -> dict[str, Any]:
    """How lm_head is stored, for manifests: its scale rule is fixed, whatever the layers use."""
    scales = {"weight_group_size": 0, "scale_rule": _POST_SCALE_RULE}
    return {**(scales if FORMATS[recipe.post_weight_type].has_scales else {}), "rounding": Recipe.rounding}


def embedding_storage() -> dict[str, Any]:
    """How the embedding is stored, for manifests."""
    return {"weight_type": "bf16", "rounding": Recipe.rounding}


def thresholds_of(recipe: Recipe) -> Thresholds:
    """The thresholds of the layers' weight type; level 2's are no stricter than the post layer's type allows."""
    layers = _layer_thresholds(recipe)
    kl, agreement = FORMATS[recipe.post_weight_type].post
    return replace(
        layers,
        max_mean_kl=max(layers.max_mean_kl, kl),
        min_top1_agreement=min(layers.min_top1_agreement, agreement),
    )


def _layer_thresholds(recipe: Recipe) -> Thresholds:
    """With float weights, hidden states in bf16 make most of the error; beside integers their type does not matter."""
    stored = FORMATS[recipe.weight_type]
    if not stored.has_scales and recipe.hidden_state_type == "bf16":
        return BF16
    way = recipe.scale_rule, recipe.rounding, recipe.weight_group_size > 0
    thresholds = stored.by_way.get(way, stored.thresholds)
    assert thresholds is not None, "every weight type of layers has thresholds"
    return thresholds
