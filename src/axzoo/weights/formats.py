"""The table of weight formats: bytes, tag, scales, calibration and check thresholds of each.

`axzoo.weights.recipe` defines the names. Nothing here determines the bytes of a compiled file, so changing a threshold
or an estimate does not rebuild layers. docs/checks.md describes how the thresholds were chosen, docs/performance.md how
the bytes were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from axzoo.weights.recipe import Recipe


@dataclass(frozen=True)
class Thresholds:
    """The limits of the checks. The first two apply to each layer (level 1), the others to the generated answer
    (level 2)."""

    min_layer_cosine: float
    max_delta_l2: float
    max_mean_kl: float
    min_top1_agreement: float


QuantizationMethod = tuple[str, str, bool]
"""scale_rule, rounding, and whether the weights are grouped."""


@dataclass(frozen=True)
class StorageFormat:
    """A type in which weights or hidden states are stored.

    `tag` is its abbreviation in a bundle's name. `bytes_stored` is the size of a value in a file, `bytes_on_device` the
    memory per weight on the board including overhead. `has_scales` is true for integers and fp8. `thresholds` apply to
    layers of this type, or None if only the post layer can have it; `by_method` has those of quantization methods that
    differ. `post` is the max_mean_kl and min_top1_agreement of a post layer of this type; they can relax the layers'.
    """

    tag: str
    bytes_stored: float
    bytes_on_device: float
    thresholds: Thresholds | None
    has_scales: bool = False
    by_method: Mapping[QuantizationMethod, Thresholds] = field(default_factory=dict)
    post: tuple[float, float] = (0.0, 1.0)


FLOAT = Thresholds(min_layer_cosine=0.99999, max_delta_l2=0.01, max_mean_kl=0.01, min_top1_agreement=0.9)
BF16 = replace(FLOAT, min_layer_cosine=0.9999, max_delta_l2=0.03)
"""For bf16 weights or hidden states, whose rounding dominates the error."""
S8 = Thresholds(min_layer_cosine=0.999, max_delta_l2=0.06, max_mean_kl=0.05, min_top1_agreement=0.8)
S4 = Thresholds(min_layer_cosine=0.8, max_delta_l2=0.6, max_mean_kl=4.0, min_top1_agreement=0.3)
S4_MSE = replace(S4, min_layer_cosine=0.4, max_delta_l2=0.8)
"""Without gptq, the mse rule clips the largest weights, which has a strong effect on single layers."""
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
        by_method={
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
"""By recipe name. The sizes on the device were measured on boards: every float type takes four bytes."""

CALIBRATED_ROUNDINGS = frozenset({"gptq"})
"""Roundings that need the hidden states recorded by `axzoo calibrate`."""

_POST_SCALE_RULE = "max_abs"
"""The scale rule of lm_head: max|w| of a row divided by the largest value of the type, 127 for s8."""


def is_calibrated(recipe: Recipe) -> bool:
    """Whether the quantized weights of the layers depend on calibration."""
    return recipe.rounding in CALIBRATED_ROUNDINGS


def tag(recipe: Recipe) -> str:
    """The recipe's abbreviation, such as w8a16 or w4a16-g32-mse-gptq. 16 is bf16, 16f is fp16."""
    words = [f"w{FORMATS[recipe.weight_type].tag}a{FORMATS[recipe.hidden_state_type].tag}"]
    words += [f"g{recipe.weight_group_size}"] if recipe.weight_group_size else []
    words += [recipe.scale_rule] if recipe.scale_rule != Recipe.scale_rule else []
    words += [recipe.rounding] if recipe.rounding != Recipe.rounding else []
    return "-".join(words)


def layer_storage(recipe: Recipe) -> dict[str, Any]:
    """How the weight matrices of a decoder layer are stored, as recorded in manifests. Float types have no scales."""
    scales = {"weight_group_size": recipe.weight_group_size, "scale_rule": recipe.scale_rule}
    return {**(scales if FORMATS[recipe.weight_type].has_scales else {}), "rounding": recipe.rounding}


def post_storage(recipe: Recipe) -> dict[str, Any]:
    """How lm_head is stored, as recorded in manifests. Its scale rule is fixed."""
    scales = {"weight_group_size": 0, "scale_rule": _POST_SCALE_RULE}
    return {**(scales if FORMATS[recipe.post_weight_type].has_scales else {}), "rounding": Recipe.rounding}


def embedding_storage() -> dict[str, Any]:
    """How the embedding is stored, as recorded in manifests."""
    return {"weight_type": "bf16", "rounding": Recipe.rounding}


def thresholds_of(recipe: Recipe) -> Thresholds:
    """The thresholds for the weight type of the layers, with level 2 relaxed to those of the post layer's type."""
    layers = _layer_thresholds(recipe)
    kl, agreement = FORMATS[recipe.post_weight_type].post
    return replace(
        layers,
        max_mean_kl=max(layers.max_mean_kl, kl),
        min_top1_agreement=min(layers.min_top1_agreement, agreement),
    )


def _layer_thresholds(recipe: Recipe) -> Thresholds:
    """The thresholds for the weight type of the layers. With float weights, bf16 hidden states dominate the error; with
    integer weights the type of the hidden states does not matter."""
    stored = FORMATS[recipe.weight_type]
    if not stored.has_scales and recipe.hidden_state_type == "bf16":
        return BF16
    method = recipe.scale_rule, recipe.rounding, recipe.weight_group_size > 0
    thresholds = stored.by_method.get(method, stored.thresholds)
    assert thresholds is not None, "every weight type of layers has thresholds"
    return thresholds
