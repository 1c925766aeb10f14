"""The fp32 oracle, in torch: what a model computes when nothing is rounded.

It shares the spec with the graph builder and none of its code. Weights come layer by layer from whoever asks, so that
a model larger than memory can be followed one layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from axzoo.model.rope import frequencies
from axzoo.model.spec import Activation, DecoderSpec, LayerSpec, NormSpec, PostSpec, RopeSpec

Weights = Mapping[str, Tensor]
"""fp32 tensors by role: linear weights [out_features, in_features], biases and norms [features]."""

Past = tuple[Tensor, Tensor]
"""A layer's keys (rotated) and values, each [tokens, num_key_value_heads, head_dim]."""


def norm(spec: NormSpec, weights: Weights, x: Tensor, name: str) -> Tensor:
    """x [..., features], normed over its last axis."""
    weight = weights[f"{name}.weight"]
    match spec.kind:
        case "rms_norm":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + spec.eps) * weight
        case "layer_norm":
            return F.layer_norm(x, x.shape[-1:], weight, weights[f"{name}.bias"], spec.eps)
        case unknown:
            assert_never(unknown)


def rotate(x: Tensor, positions: Tensor, rope: RopeSpec, longest: int) -> Tensor:
    """x [tokens, heads, head_dim]: turns pairs of its first rotary_dim dimensions by position * frequency.

    `longest` is the length of the sequences the model is asked for: some kinds of rope depend on it.
    """
    inv_freq, factor = frequencies(rope, longest)
    angles = positions.float()[:, None] * torch.from_numpy(inv_freq)
    cos, sin = angles.cos()[:, None] * factor, angles.sin()[:, None] * factor
    turned, rest = x[..., : rope.rotary_dim], x[..., rope.rotary_dim :]
    if rope.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        return torch.cat([torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2), rest], -1)
    a, b = turned.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def attention(spec: LayerSpec, weights: Weights, x: Tensor, past: Past | None, longest: int) -> tuple[Tensor, Past]:
    """x [tokens, hidden_size], normed, after the tokens of `past` -> what attention adds, and the grown past."""
    mixed, past = mixed_values(spec, weights, x, past, longest)
    return project(weights, "o_proj", mixed), past


def mixed_values(spec: LayerSpec, weights: Weights, x: Tensor, past: Past | None, longest: int) -> tuple[Tensor, Past]:
    """Attention up to o_proj: x as above -> the heads' values, mixed [tokens, q_size], and the grown past."""

    def heads(role: str, normed: bool) -> Tensor:
        value = project(weights, f"{role}_proj", x).view(len(x), -1, spec.head_dim)
        return norm(NormSpec("rms_norm", spec.norm.eps), weights, value, f"{role}_norm") if normed else value

    start = 0 if past is None else len(past[0])
    positions = torch.arange(start, start + len(x))
    q = rotate(heads("q", spec.qk_norm), positions, spec.rope, longest)
    k = rotate(heads("k", spec.qk_norm), positions, spec.rope, longest)
    v = heads("v", False)
    if past is not None:
        k, v = torch.cat([past[0], k]), torch.cat([past[1], v])
    group = spec.num_attention_heads // spec.num_key_value_heads
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(group, 1)) * spec.head_dim**-0.5
    distance = positions[:, None] - torch.arange(len(k))[None, :]
    hidden = distance < 0
    if spec.sliding_window is not None:
        hidden = hidden | (distance >= spec.sliding_window)
    probabilities = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    mixed = torch.einsum("hqk,khd->qhd", probabilities, v.repeat_interleave(group, 1))
    return mixed.flatten(1), (k, v)


def mlp(spec: LayerSpec, weights: Weights, x: Tensor) -> Tensor:
    """x [tokens, hidden_size], already normed -> what the MLP adds."""
    return project(weights, "down_proj", activations(spec, weights, x))


def activations(spec: LayerSpec, weights: Weights, x: Tensor) -> Tensor:
    """The MLP up to down_proj: x as above -> [tokens, intermediate_size]."""
    up = project(weights, "up_proj", x)
    if spec.gated:
        return activate(spec.hidden_act, project(weights, "gate_proj", x)) * up
    return activate(spec.hidden_act, up)


def activate(act: Activation, x: Tensor) -> Tensor:
    """The activation function `act`, element by element."""
    match act:
        case "silu":
            return F.silu(x)
        case "gelu_new":
            return F.gelu(x, approximate="tanh")
        case unknown:
            assert_never(unknown)


def layer(
    spec: LayerSpec, weights: Weights, x: Tensor, past: Past | None = None, longest: int = 1
) -> tuple[Tensor, Past]:
    """x [tokens, hidden_size] after the tokens of `past` -> the layer's output, same shape, and the grown past.

    `longest` is the length of the longest sequence the files hold (`Recipe.positions`).
    """
    x = x * spec.input_scale
    normed = norm(spec.norm, weights, x, "input_norm")
    attended, past = attention(spec, weights, normed, past, longest)
    x = x + attended * spec.residual_scale
    if not spec.parallel:
        normed = norm(spec.norm, weights, x, "mlp_norm")
    return x + mlp(spec, weights, normed) * spec.residual_scale, past


def post(spec: PostSpec, weights: Weights, x: Tensor) -> Tensor:
    """x [tokens, hidden_size] -> logits [tokens, vocab_size]."""
    return project(weights, "lm_head", norm(spec.norm, weights, x, "norm") * spec.logit_scale)


def project(weights: Weights, role: str, x: Tensor) -> Tensor:
    """x [..., in_features] through the linear layer of that role, with its bias if it has one."""
    return F.linear(x, weights[f"{role}.weight"], weights.get(f"{role}.bias"))


@dataclass(frozen=True)
class Oracle:
    """A whole model in fp32. `layer_weights(i)`, `post_weights()` and `embed(ids)` give its numbers when asked.

    `longest` is the length of the longest sequence the files it is compared with hold (`Recipe.positions`).
    """

    spec: DecoderSpec
    layer_weights: Callable[[int], Weights]
    post_weights: Callable[[], Weights]
    embed: Callable[[Sequence[int]], Tensor]
    longest: int = 1

    def layer(self, index: int, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """Layer `index` on x [tokens, hidden_size] after the tokens of `past`."""
        with torch.inference_mode():
            return layer(self.spec.layer_spec(index), self.layer_weights(index), x, past, self.longest)

    def hidden_states(self, ids: Sequence[int]) -> Iterator[Tensor]:
        """The input of layer 0, then each layer's output, [tokens, hidden_size]; one layer's weights at a time."""
        x = self.embed(ids)
        yield x
        for index in range(self.spec.num_hidden_layers):
            x, _ = self.layer(index, x)
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
        for _ in range(tokens):
            x = self.embed(ids)
            for index in range(self.spec.num_hidden_layers):
                x, pasts[index] = self.layer(index, x, pasts[index])
            with torch.inference_mode():
                logits = post(self.spec.post, self.post_weights(), x[-1:])[0]
            ids = [int(logits.argmax())]
            yield ids[0], logits
