"""The table of weight formats: bytes, tag, scales, calibration and check thresholds of each.

`axzoo.weights.recipe` defines the names. Nothing here determines the bytes of a compiled file, so changing a threshold
or an estimate does not rebuild layers. docs/checks.md describes how the thresholds were chosen, docs/performance.md how
the bytes were measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.weights.recipe import Recipe


@dataclass(frozen=True)
class Thresholds:
    """What quantization usually costs at most. The first three apply to each layer (level 1), the others to the
    generated answer (level 2)."""

    min_layer_cosine: float
    max_delta_l2: float
    max_delta_l2_p95: float
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


TAIL = 2.0
"""The 95th percentile of the delta's error, relative to the limit of the median."""


def _usual(cosine: float, delta_l2: float, mean_kl: float, top1_agreement: float) -> Thresholds:
    return Thresholds(cosine, delta_l2, TAIL * delta_l2, mean_kl, top1_agreement)


FLOAT = _usual(0.99999, 0.01, mean_kl=0.01, top1_agreement=0.9)
BF16 = _usual(0.9999, 0.03, mean_kl=0.01, top1_agreement=0.9)
"""For bf16 weights or hidden states, whose rounding dominates the error."""
S8 = _usual(0.997, 0.06, mean_kl=0.05, top1_agreement=0.8)
S4 = _usual(0.8, 0.6, mean_kl=4.0, top1_agreement=0.3)
S4_MSE = _usual(0.4, 0.8, mean_kl=4.0, top1_agreement=0.3)
"""Without gptq, the mse rule clips the largest weights, which has a strong effect on single layers."""
S4_GPTQ = _usual(0.8, 0.9, mean_kl=4.0, top1_agreement=0.3)
"""GPTQ reduces the error summed over many tokens, not the delta of each token."""
S4_MSE_GPTQ = _usual(0.9, 0.55, mean_kl=4.0, top1_agreement=0.3)
S4_GROUPS = _usual(0.85, 0.5, mean_kl=2.5, top1_agreement=0.4)
S4_GROUPS_MSE = _usual(0.75, 0.6, mean_kl=2.5, top1_agreement=0.4)
S4_GROUPS_GPTQ = _usual(0.85, 0.65, mean_kl=2.5, top1_agreement=0.4)

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


def thresholds_of(recipe: Recipe, limits: Mapping[str, float] | None = None) -> Thresholds:
    """The thresholds for the weight type of the layers, with level 2 relaxed to those of the post layer's type.
    `limits` are a matrix entry's own, by name."""
    layers = _layer_thresholds(recipe)
    kl, agreement = FORMATS[recipe.post_weight_type].post
    usual = replace(
        layers,
        max_mean_kl=max(layers.max_mean_kl, kl),
        min_top1_agreement=min(layers.min_top1_agreement, agreement),
    )
    return replace(usual, **(limits or {}))


def parse_limits(text: str) -> dict[str, float]:
    """Parses the option `--thresholds`: a JSON object of numbers, by the names of Thresholds. Raises AxzooError."""
    try:
        limits = json.loads(text)
    except (ValueError, RecursionError):
        limits = None
    names = list(Thresholds.__dataclass_fields__)
    if not isinstance(limits, dict) or not set(limits) <= set(names):
        raise AxzooError(f"--thresholds {text!r:.80} must be a JSON object with some of the keys {', '.join(names)}")
    if any(type(value) not in (int, float) or not math.isfinite(value) for value in limits.values()):
        raise AxzooError(f"--thresholds {text!r:.80} must contain numbers only")
    return limits


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
