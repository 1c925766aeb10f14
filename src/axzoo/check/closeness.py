"""How far a file's results may be from the oracle's on the same weights: the rounding of one number, and fp32 noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from axzoo.model.spec import LayerSpec

FP32_NOISE = 2e-5
"""Error of a sum in fp32, relative to the largest value of its row. Different orders of addition gave up to 2e-5."""

FLIPPED = 0.05
"""Share of results that may round to the neighbouring number because of fp32 noise. Right files gave up to 0.01."""

UNIT = 2.0**-24
"""Largest relative error of one rounding to fp32."""

ROUNDINGS = 8
"""Roundings of an attention score besides those of its sum: of the query, of the rotations, of the scaling."""

DECIDABLE = 64
"""Fewest results from which that share is computed."""

_MANTISSA = {"fp32": 24, "fp16": 11, "bf16": 8}
_SMALLEST = {"fp32": 2.0**-149, "fp16": 2.0**-24, "bf16": 2.0**-133}
_TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Closeness:
    """Results of a file compared with the oracle's, row by row.

    `worst` is the largest error in units of the error allowed, at row `row`; it is at most 1 in a right file, and close
    to 1 in a large one, because some number always lies almost half a step from its neighbours. `beyond_rounding` is
    the largest error beyond that half step, in units of the fp32 noise allowed; 0 if no error is larger. `flipped`
    is the share of results that are not the oracle's result, correctly rounded, among those large enough that fp32
    noise rarely changes their rounding; None if there are too few.
    """

    worst: float
    row: int
    flipped: float | None
    beyond_rounding: float = 0.0

    @property
    def is_close(self) -> bool:
        return self.worst <= 1 and (self.flipped is None or self.flipped <= FLIPPED)


def closeness(got: Tensor, want: Tensor, scale: Tensor, state: str, more: Tensor | float = 0.0) -> Closeness:
    """Compares got [n, width] with the unrounded want [n, width]; both fp32, `got` stored as `state` ("bf16", ...).

    `scale` [n] is the magnitude of the numbers that were added up for each row, and `more` [n, 1] fp32 noise from
    other sources. A result that is not finite is infinitely far away.
    """
    half = half_step(want, state)
    noise = FP32_NOISE * scale[:, None] + want.abs() * 2.0**-22 + more
    error = (got - want).abs() / (half + noise).clamp_min(1e-38)
    error = torch.where(got.isfinite(), error, torch.inf)
    beyond = float((((got - want).abs() - half) / noise.clamp_min(1e-38)).amax().clamp_min(0))
    rows = error.amax(1)
    row = int(rows.argmax())
    if state == "fp32":
        return Closeness(float(rows[row]), row, None, beyond)
    decidable = noise < 0.05 * half
    count = int(decidable.sum())
    flipped = ((got != want.to(_TORCH[state]).float()) & decidable).sum() / max(count, 1)
    return Closeness(float(rows[row]), row, float(flipped) if count >= DECIDABLE else None, beyond)


def half_step(values: Tensor, state: str) -> Tensor:
    """Half the distance between neighbouring numbers of type `state` at fp32 `values`."""
    _, exponent = torch.frexp(values)
    step = torch.ldexp(torch.ones_like(values), exponent - _MANTISSA[state])
    return step.clamp_min(_SMALLEST[state]) / 2


def context_noise(spec: LayerSpec, q: Tensor, k: Tensor, v: Tensor, masked: Tensor, context: Tensor) -> Tensor:
    """The error of each context vector [n, q_size] that the rounding of attention scores to fp32 explains. The other
    arguments are those of `attend`, and its result.

    A score is a sum of head_dim products, whose error is at most the number of roundings times UNIT times the sum of
    their magnitudes. That is little unless queries or keys are large, as with the biases of keys of some models: then
    scores of hundreds cancel. An error in the score of a token moves the context towards its value, by the token's
    share. Errors of different tokens are independent, so their squares add up.
    """
    group = spec.num_attention_heads // spec.num_key_value_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * spec.head_dim**-0.5
    magnitudes = torch.einsum("qhd,khd->hqk", q.abs(), k.abs()) * spec.head_dim**-0.5
    moved = scores.masked_fill(masked, float("-inf")).softmax(-1) * magnitudes * (spec.head_dim + ROUNDINGS) * UNIT
    # The sum over tokens of (moved * (v - center))**2, without an array of all differences.
    shares, center = moved.square(), context.view(len(context), -1, spec.head_dim)
    squares: Tensor = torch.einsum("hqk,khd->qhd", shares, v.square())
    squares -= 2 * center * torch.einsum("hqk,khd->qhd", shares, v)
    squares += center.square() * shares.sum(-1).T[..., None]
    return squares.clamp_min(0).sqrt().flatten(1)
