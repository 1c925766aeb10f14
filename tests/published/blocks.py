"""What the published models have in common."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Each row [..., size] divided by its root mean square, then weighted."""
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight


def rotations(rotary_size: int, base: float, tokens: int, stretch: float = 1.0) -> Tensor:
    """Unit complex numbers [tokens, rotary_size / 2]: pair p turns by base^(-2p / rotary_size) with each position.

    Under `stretch` the tokens stand that much closer together.
    """
    speeds = torch.tensor([base ** (-2 * pair / rotary_size) for pair in range(rotary_size // 2)], dtype=torch.float64)
    turns = torch.arange(tokens, dtype=torch.float64)[:, None] / stretch * speeds
    return torch.polar(torch.ones_like(turns), turns).to(torch.complex64)


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention, one query head at a time; neighbouring query heads share a key head.

    queries [tokens, heads, head_size], keys and values [tokens, groups, head_size]; returns
    [tokens, heads * head_size].
    """
    tokens, heads, head_size = queries.shape
    heads_per_group = heads // keys.shape[1]
    unseen = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    mixed = []
    for head in range(heads):
        group = head // heads_per_group
        scores = queries[:, head] @ keys[:, group].T / head_size**0.5
        mixed.append(scores.masked_fill(unseen, -torch.inf).softmax(-1) @ values[:, group])
    return torch.cat(mixed, dim=-1)
