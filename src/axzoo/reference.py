"""The fp32 oracle, in torch: what a model computes when nothing is rounded.

It shares the spec with the graph builder and none of its code. Weights come layer by layer from whoever asks, so that
a model larger than memory can be followed one layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from axzoo.spec import DecoderSpec, LayerSpec, PostSpec, RopeSpec

Weights = Mapping[str, Tensor]
"""fp32 tensors by role: linear weights [out_features, in_features], biases and norms [features]."""

Past = tuple[Tensor, Tensor]
"""A layer's keys (rotated) and values, each [tokens, num_key_value_heads, head_dim]."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, positions: Tensor, rope: RopeSpec) -> Tensor:
    """x [tokens, heads, head_dim]: turns dimension pairs (i, i + rotary_dim / 2) by position * inv_freq[i]."""
    angles = positions.float()[:, None] * torch.tensor(rope.inv_freq)
    cos, sin = angles.cos()[:, None] * rope.attention_factor, angles.sin()[:, None] * rope.attention_factor
    half = len(rope.inv_freq)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def layer(spec: LayerSpec, weights: Weights, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
    """x [tokens, hidden_size] after the tokens of `past` -> the layer's output, same shape, and the grown past."""

    def project(role: str, value: Tensor) -> Tensor:
        return F.linear(value, weights[f"{role}.weight"], weights.get(f"{role}.bias"))

    start = 0 if past is None else len(past[0])
    positions = torch.arange(start, start + len(x))
    h = rms_norm(x, weights["input_norm.weight"], spec.rms_norm_eps)
    q = rotate(project("q_proj", h).view(len(x), -1, spec.head_dim), positions, spec.rope)
    k = rotate(project("k_proj", h).view(len(x), -1, spec.head_dim), positions, spec.rope)
    v = project("v_proj", h).view(len(x), -1, spec.head_dim)
    if past is not None:
        k, v = torch.cat([past[0], k]), torch.cat([past[1], v])
    group = spec.num_attention_heads // spec.num_key_value_heads
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(group, 1)) * spec.head_dim**-0.5
    hidden_future = torch.arange(len(k))[None, :] > positions[:, None]
    probabilities = scores.masked_fill(hidden_future, float("-inf")).softmax(-1)
    mixed = torch.einsum("hqk,khd->qhd", probabilities, v.repeat_interleave(group, 1))
    x = x + project("o_proj", mixed.flatten(1))
    h = rms_norm(x, weights["mlp_norm.weight"], spec.rms_norm_eps)
    return x + project("down_proj", F.silu(project("gate_proj", h)) * project("up_proj", h)), (k, v)


def post(spec: PostSpec, weights: Weights, x: Tensor) -> Tensor:
    """x [tokens, hidden_size] -> logits [tokens, vocab_size]."""
    return F.linear(rms_norm(x, weights["norm.weight"], spec.rms_norm_eps), weights["lm_head.weight"])


@dataclass(frozen=True)
class Oracle:
    """A whole model in fp32. `layer_weights(i)`, `post_weights()` and `embed(ids)` give its numbers when asked."""

    spec: DecoderSpec
    layer_weights: Callable[[int], Weights]
    post_weights: Callable[[], Weights]
    embed: Callable[[Sequence[int]], Tensor]

    def hidden_states(self, ids: Sequence[int]) -> Iterator[Tensor]:
        """The input of layer 0, then each layer's output, [tokens, hidden_size]; one layer's weights at a time."""
        with torch.inference_mode():
            x = self.embed(ids)
            yield x
            for index in range(self.spec.num_hidden_layers):
                x, _ = layer(self.spec.layer, self.layer_weights(index), x)
                yield x

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits [tokens, vocab_size] after each token."""
        *_, x = self.hidden_states(ids)
        with torch.inference_mode():
            return post(self.spec.post, self.post_weights(), x)

    def greedy(self, prompt: Sequence[int], tokens: int) -> Iterator[tuple[int, Tensor]]:
        """The `tokens` likeliest continuations one after the other, each with the logits it was chosen from."""
        pasts: list[Past | None] = [None] * self.spec.num_hidden_layers
        ids = list(prompt)
        with torch.inference_mode():
            for _ in range(tokens):
                x = self.embed(ids)
                for index in range(self.spec.num_hidden_layers):
                    x, pasts[index] = layer(self.spec.layer, self.layer_weights(index), x, pasts[index])
                logits = post(self.spec.post, self.post_weights(), x[-1:])[0]
                ids = [int(logits.argmax())]
                yield ids[0], logits
