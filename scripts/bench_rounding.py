"""Measure the cost of quantizing activations, for several ways to round the inputs of matrix products.

    python scripts/bench_rounding.py [--texts N]

Run `make demo` first. Fast mode samples texts of 400 tokens from the model. The fp32 oracle with the bundle's
dequantized weights then predicts every token, with and without rounding the inputs of products; nothing else is
rounded. In the table, "row" means the activations of one token.
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
from axzoo.model import oracle as oracle_module
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
"""Rounds activations of shape [tokens, features]."""


def symmetric(x: Tensor) -> Tensor:
    """Symmetric int8 with one scale per row (along the last axis)."""
    step = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return torch.round(x / step) * step


def asymmetric(x: Tensor) -> Tensor:
    """Asymmetric uint8 between the minimum and maximum of each row, as in DynamicQuantizeLinear."""
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    step = (high - low) / 255
    zero = torch.round(-low / step)
    return (torch.clamp(torch.round(x / step) + zero, 0, 255) - zero) * step


def in_blocks(length: int) -> Rounding:
    return lambda x: symmetric(x.unflatten(-1, (-1, length))).flatten(-2)


def per_tensor(rounding: Rounding) -> Rounding:
    """The same rounding with a single scale for all rows."""
    return lambda x: rounding(x.flatten()).view(x.shape)


def sixteen_bit(rounding: Rounding) -> Rounding:
    """16 bits, as two 8-bit values: the rounded input, and its rounded residual."""
    return lambda x: rounding(x) + rounding(x - rounding(x))


WAYS: Mapping[str, Rounding] = {
    "blocks of 32": in_blocks(32),
    "blocks of 64": in_blocks(64),
    "rows": symmetric,
    "rows, asymmetric": asymmetric,
    "one scale for all": per_tensor(asymmetric),
    "16-bit, rows": sixteen_bit(symmetric),
    "16-bit, one scale for all": sixteen_bit(per_tensor(asymmetric)),
}


def sample_texts(count: int) -> list[list[int]]:
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


def predictions(oracle: oracle_module.Oracle, texts: list[list[int]], roles: tuple[str, ...], way: Rounding) -> Tensor:
    """Log probabilities [tokens, vocab_size]. The inputs of the products with `roles` are rounded."""
    exact = oracle_module.project

    def project(weights: oracle_module.Weights, role: str, x: Tensor) -> Tensor:
        return exact(weights, role, way(x) if role in roles else x)

    with patch.object(oracle_module, "project", project):
        return torch.cat([torch.log_softmax(oracle.logits(text).double(), -1) for text in texts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=4, metavar="N")
    texts = sample_texts(parser.parse_args().texts)
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
    table(("rounding", "top-1, all", *(f"KL, {case}" for case in cases)), rows)


if __name__ == "__main__":
    main()
