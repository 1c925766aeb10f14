"""What a build must reach to pass, by weight type. How the numbers were found: docs/checks.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """Level 1 holds for every layer; level 2 for the generated answer, against the oracle reading the same text."""

    min_layer_cosine: float
    max_delta_l2: float
    max_mean_kl: float
    min_top1_agreement: float


FLOAT = Thresholds(min_layer_cosine=0.9999, max_delta_l2=0.03, max_mean_kl=0.01, min_top1_agreement=0.9)
S8 = Thresholds(min_layer_cosine=0.999, max_delta_l2=0.06, max_mean_kl=0.05, min_top1_agreement=0.8)

BY_WEIGHT_TYPE = {"fp32": FLOAT, "fp16": FLOAT, "bf16": FLOAT, "s8": S8}
