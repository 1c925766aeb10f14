"""What a build must reach to pass, by how its weights are stored. How the numbers were found: docs/checks.md."""

from __future__ import annotations

from dataclasses import dataclass, replace

from axzoo.recipe import Recipe


@dataclass(frozen=True)
class Thresholds:
    """Level 1 holds for every layer; level 2 for the generated answer, against the oracle reading the same text."""

    min_layer_cosine: float
    max_delta_l2: float
    max_mean_kl: float
    min_top1_agreement: float


FLOAT = Thresholds(min_layer_cosine=0.9999, max_delta_l2=0.03, max_mean_kl=0.01, min_top1_agreement=0.9)
S8 = Thresholds(min_layer_cosine=0.999, max_delta_l2=0.06, max_mean_kl=0.05, min_top1_agreement=0.8)
S4_GROUPS = Thresholds(min_layer_cosine=0.75, max_delta_l2=0.7, max_mean_kl=2.5, min_top1_agreement=0.4)
S4 = Thresholds(min_layer_cosine=0.4, max_delta_l2=0.95, max_mean_kl=4.0, min_top1_agreement=0.3)
"""One scale per row: what four bits do to a model is large, whatever the rule; what a wrong layer does is larger."""

POST = {"fp8_e4m3": (0.1, 0.8), "fp8_e5m2": (0.5, 0.6)}
"""max_mean_kl and min_top1_agreement where the post layer costs more than the layers; it has no part in level 1."""


def thresholds_of(recipe: Recipe) -> Thresholds:
    """Those of the layers' weights; level 2's no stricter than the post layer's allow."""
    if recipe.weight_type == "s4":
        layers = S4_GROUPS if recipe.weight_group_size else S4
    else:
        layers = S8 if recipe.weight_type == "s8" else FLOAT
    kl, agreement = POST.get(recipe.post_weight_type, (0.0, 1.0))
    return replace(
        layers,
        max_mean_kl=max(layers.max_mean_kl, kl),
        min_top1_agreement=min(layers.min_top1_agreement, agreement),
    )
