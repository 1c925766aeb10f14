"""What rounding the inputs of products costs, by the way they are rounded, with nothing else rounded.

    python scripts/bench_rounding.py [--texts N]

Needs `make demo` to have run. Fast mode samples texts of 400 tokens from the model; the fp32 oracle on the bundle's
dequantized weights then predicts every token, with and without rounding what each product takes. A row is a token's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from unittest.mock import patch

import numpy as np
import torch
from bench import table
from bench_speed import BUNDLE, log_softmax
from torch import Tensor

from axzoo.check.oracles import bundle_oracle, in_memory
from axzoo.model import oracle as reference
from axzoo.runtime.model import load_model

LENGTH = 400
INPUTS = {
    "q, k, v": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate, up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
    "post": ("lm_head",),
}

Rounding = Callable[[Tensor], Tensor]
"""Rows [tokens, features] -> the same, rounded."""


def symmetric(x: Tensor) -> Tensor:
    """A byte with one scale for each of the last axis' lines."""
    step = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return torch.round(x / step) * step


def asymmetric(x: Tensor) -> Tensor:
    """The same between the smallest and the largest, as DynamicQuantizeLinear does for a whole tensor."""
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    step = (high - low) / 255
    zero = torch.round(-low / step)
    return (torch.clamp(torch.round(x / step) + zero, 0, 255) - zero) * step


def in_blocks(length: int) -> Rounding:
    return lambda x: symmetric(x.unflatten(-1, (-1, length))).flatten(-2)


def whole(rounding: Rounding) -> Rounding:
    """One scale for all rows."""
    return lambda x: rounding(x.flatten()).view(x.shape)


def twice(rounding: Rounding) -> Rounding:
    """Two bytes: rounded, and what that leaves, rounded."""
    return lambda x: rounding(x) + rounding(x - rounding(x))


WAYS: Mapping[str, Rounding] = {
    "blocks of 32": in_blocks(32),
    "blocks of 64": in_blocks(64),
    "rows": symmetric,
    "rows, between smallest and largest": asymmetric,
    "one scale for all": whole(asymmetric),
    "two bytes, rows": twice(symmetric),
    "two bytes, one scale for all": twice(whole(asymmetric)),
}


def sampled(count: int) -> list[list[int]]:
    model, rng = load_model(BUNDLE, "fast"), np.random.default_rng(5)
    texts = []
    for _ in range(count):
        model.reset()
        text = [int(rng.integers(1000, 40000))]
        while len(text) < LENGTH:
            logs = log_softmax(model.decode(text[-1]))
            text.append(int(rng.choice(len(logs), p=np.exp(logs) / np.exp(logs).sum())))
        texts.append(text)
    return texts


def predictions(oracle: reference.Oracle, texts: list[list[int]], roles: tuple[str, ...], way: Rounding) -> Tensor:
    """Logarithms of probabilities [tokens, vocab_size]."""
    usual = reference.project

    def project(weights: reference.Weights, role: str, x: Tensor) -> Tensor:
        return usual(weights, role, way(x) if role in roles else x)

    with patch.object(reference, "project", project):
        return torch.cat([torch.log_softmax(oracle.logits(text).double(), -1) for text in texts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=4, metavar="N")
    texts = sampled(parser.parse_args().texts)
    oracle = in_memory(bundle_oracle(BUNDLE))
    exact = predictions(oracle, texts, (), symmetric)
    cases = {"all": tuple(role for roles in INPUTS.values() for role in roles)} | INPUTS
    rows = []
    for way, rounding in WAYS.items():
        found = []
        for roles in cases.values():
            logs = predictions(oracle, texts, roles, rounding)
            if not found:
                agreed = (logs.argmax(-1) == exact.argmax(-1)).double().mean().item()
            found.append(f"{(exact.exp() * (exact - logs)).sum(-1).mean().item():.5f}")
        rows.append((way, f"{agreed:.4f}", *found))
    table(("rounded by", "top-1, all", *(f"KL, {case}" for case in cases)), rows)


if __name__ == "__main__":
    main()
