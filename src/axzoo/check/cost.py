"""What quantization costs: the results of a layer's file compared with the fp32 checkpoint's, token by token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from axzoo.check.metrics import cosine, max_abs, relative_l2
from axzoo.weights.formats import Thresholds

MASSIVE = 0.1
"""A token is massive if rounding its output to the hidden state type changes what the layer adds by this share."""

PERCENTILE = 95

_TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Cost:
    """A layer's output compared with the fp32 checkpoint's.

    `cosine` is the minimum over tokens. `delta_l2` and `delta_l2_p95` are the median and the 95th percentile over
    tokens of the relative L2 error of what the layer adds to the residual stream. They leave out `massive_tokens`, the
    positions of tokens whose activations are so large that rounding them is a noticeable error of what the layer adds.
    `max_abs` is the maximum absolute error.
    """

    cosine: float
    delta_l2: float
    delta_l2_p95: float
    max_abs: float
    massive_tokens: tuple[int, ...] = ()

    def exceeds(self, thresholds: Thresholds) -> list[str]:
        """The names of the thresholds that the cost exceeds. NaN exceeds every threshold."""
        met = {
            "min_layer_cosine": self.cosine >= thresholds.min_layer_cosine,
            "max_delta_l2": self.delta_l2 <= thresholds.max_delta_l2,
            "max_delta_l2_p95": self.delta_l2_p95 <= thresholds.max_delta_l2_p95,
        }
        return [name for name, is_met in met.items() if not is_met]


def cost_of(given: Tensor, got: Tensor, want: Tensor, state: str, first: int = 0) -> Cost:
    """Compares got with want, the outputs for the input `given`; all [tokens, hidden_size] fp32. The first token is at
    position `first`."""
    rounded = want.to(_TORCH[state]).float()
    tokens = [tuple(row.numpy() for row in rows) for rows in zip(given, got, want, rounded, strict=True)]
    massive = [relative_l2(r - x, w - x) > MASSIVE for x, _, w, r in tokens]
    ordinary = [token for token, is_massive in zip(tokens, massive, strict=True) if not is_massive] or tokens
    deltas = [relative_l2(g - x, w - x) for x, g, w, _ in ordinary]
    return Cost(
        cosine=float(np.min([cosine(g, w) for _, g, w, _ in tokens])),  # NaN stays NaN
        delta_l2=float(np.percentile(deltas, 50, method="lower")),  # the smaller one of two tokens
        delta_l2_p95=float(np.percentile(deltas, PERCENTILE, method="higher")),
        max_abs=max_abs(got.numpy(), want.numpy()),
        massive_tokens=tuple(first + i for i, is_massive in enumerate(massive) if is_massive),
    )
