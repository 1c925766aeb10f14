"""How long a job may take, by its model's sizes: a cluster ends one that takes longer, which is sent again for more."""

from __future__ import annotations

import math
from typing import Literal

Stage = Literal[
    "fetch", "lock", "calibrate", "layer", "gptq_layer", "post", "embed", "bundle", "check_layers", "check_generation"
]

SECONDS_PER_MILLION: dict[Stage, float] = {
    "fetch": 2.0,  # of bf16 weights, 1 MB/s
    "lock": 0.1,
    "calibrate": 20.0,
    "layer": 0.3,
    "gptq_layer": 20.0,
    "post": 0.3,
    "embed": 0.2,
    "bundle": 0.1,
    "check_layers": 0.5,
    "check_generation": 1.0,
}
"""For a million weights: ten times and more what SmolLM2-135M takes on two cores (docs/performance.md), since nodes
differ; fetching and GPTQ more generously."""

_START = 10
_ASSUMED_WEIGHTS = 9_000_000_000
"""Of a model whose entry does not state its sizes."""


def minutes(stage: Stage, weights: int | None) -> int:
    """Minutes a job of the stage may take with so many weights, or None where nobody knows them."""
    known = _ASSUMED_WEIGHTS if weights is None else weights
    return _START + math.ceil(known / 1e6 * SECONDS_PER_MILLION[stage] / 60)
