"""The fp32 oracle in torch: the reference result of a model without any quantization.

It shares the spec with the graph builder, but none of its code. The caller provides weights layer by layer, so a model
larger than memory can be run one layer at a time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from axzoo.model.rope import frequencies
from axzoo.model.spec import Activation, DecoderSpec, LayerSpec, NormSpec, PostSpec, RopeSpec

Weights = Mapping[str, Tensor]
"""fp32 tensors by role: linear weights [out_features, in_features], biases and norms [features]."""


class StreamedWeights(Mapping[str, Tensor]):
    """Weights that are read whenever they are used. Matrices are multiplied block by block, so none is in memory."""

    def __contains__(self, role: object) -> bool:
        return role in list(self)  # a Mapping would read the tensor

    @abstractmethod
    def rows(self, role: str) -> Iterator[Tensor]:
        """The matrix of a role as consecutive blocks of rows, fp32."""

    @abstractmethod
    def shape(self, role: str) -> tuple[int, ...]:
        """The shape of a tensor."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """The number of values of all tensors."""


Past = tuple[Tensor, Tensor]
"""A layer's rotated keys and its values, each [tokens, num_key_value_heads, head_dim]."""


def norm(spec: NormSpec, weights: Weights, x: Tensor, name: str) -> Tensor:
    """Normalizes x [..., features] over its last axis."""
    weight = weights[f"{name}.weight"]
    match spec.kind:
        case "rms_norm":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + spec.eps) * weight
        case "layer_norm":
            return F.layer_norm(x, x.shape[-1:], weight, weights[f"{name}.bias"], spec.eps)
        case unknown:
            assert_never(unknown)


def rotate(x: Tensor, positions: Tensor, rope: RopeSpec, max_length: int) -> Tensor:
    """Rotates x [tokens, heads, head_dim]: pairs of the first rotary_dim dimensions by position * frequency.

    `max_length` is the maximum sequence length, on which some rope types depend.
    """
    if not rope.rotary_dim:
        return x
    inv_freq, factor = frequencies(rope, max_length)
    angles = positions.float()[:, None] * torch.from_numpy(inv_freq)
    cos, sin = angles.cos()[:, None] * factor, angles.sin()[:, None] * factor
    rotary, rest = x[..., : rope.rotary_dim], x[..., rope.rotary_dim :]
    if rope.interleaved:
        a, b = rotary[..., 0::2], rotary[..., 1::2]
        return torch.cat([torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2), rest], -1)
    a, b = rotary.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def attention_context(
    spec: LayerSpec, weights: Weights, x: Tensor, past: Past | None, max_length: int
) -> tuple[Tensor, Past]:
    """Attention up to o_proj: normalized x [tokens, hidden_size] -> the context vectors [tokens, q_size], and `past`
    with x appended."""
    start = 0 if past is None else len(past[0])
    positions = torch.arange(start, start + len(x))
    q, k, v = projections(spec, weights, x, positions, max_length)
    if past is not None:
        k, v = torch.cat([past[0], k]), torch.cat([past[1], v])
    return attend(spec, q, k, v, is_masked(spec, positions, torch.arange(len(k)))), (k, v)


def projections(
    spec: LayerSpec, weights: Weights, x: Tensor, positions: Tensor, max_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of normalized x [tokens, hidden_size] at `positions` [tokens], each [tokens, heads,
    head_dim]; queries and keys are rotated."""

    def heads(role: str, qk_norm: bool) -> Tensor:
        value = project(weights, f"{role}_proj", x).view(len(x), -1, spec.head_dim)
        return norm(NormSpec("rms_norm", spec.norm.eps), weights, value, f"{role}_norm") if qk_norm else value

    q = rotate(heads("q", spec.qk_norm), positions, spec.rope, max_length)
    k = rotate(heads("k", spec.qk_norm), positions, spec.rope, max_length)
    return q, k, heads("v", False)


def is_masked(spec: LayerSpec, queries: Tensor, keys: Tensor) -> Tensor:
    """Whether a query at position `queries` [n] must not see a key at position `keys` [m]: bool [n, m]."""
    distance = queries[:, None] - keys[None, :]
    masked = distance < 0
    return masked if spec.sliding_window is None else masked | (distance >= spec.sliding_window)


def attend(spec: LayerSpec, q: Tensor, k: Tensor, v: Tensor, masked: Tensor) -> Tensor:
    """Context vectors [n, q_size] of queries q [n, heads, head_dim] over keys and values [m, kv heads, head_dim],
    except those that `masked` [n, m] hides."""
    group = spec.num_attention_heads // spec.num_key_value_heads
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(group, 1)) * spec.head_dim**-0.5
    probabilities = scores.masked_fill(masked, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", probabilities, v.repeat_interleave(group, 1)).flatten(1)


def mlp(spec: LayerSpec, weights: Weights, x: Tensor) -> Tensor:
    """The MLP of normalized x [tokens, hidden_size] -> [tokens, hidden_size]."""
    return project(weights, "down_proj", mlp_activations(spec, weights, x))


def mlp_activations(spec: LayerSpec, weights: Weights, x: Tensor) -> Tensor:
    """The MLP up to down_proj: x as above -> [tokens, intermediate_size]."""
    up = project(weights, "up_proj", x)
    if spec.gated:
        return activate(spec.hidden_act, project(weights, "gate_proj", x)) * up
    return activate(spec.hidden_act, up)


def activate(act: Activation, x: Tensor) -> Tensor:
    """Applies the activation function `act` elementwise."""
    match act:
        case "silu":
            return F.silu(x)
        case "gelu_new":
            return F.gelu(x, approximate="tanh")
        case unknown:
            assert_never(unknown)


def layer(
    spec: LayerSpec, weights: Weights, x: Tensor, past: Past | None = None, max_length: int = 1
) -> tuple[Tensor, Past]:
    """One layer on x [tokens, hidden_size], which follows the tokens of `past` -> output of the same shape, and `past`
    with x appended.

    `max_length` is the max_length sequence the compiled files hold (`Recipe.positions`).
    """
    x = x * spec.input_scale
    normed = norm(spec.norm, weights, x, "input_norm")
    context, past = attention_context(spec, weights, normed, past, max_length)
    return add_branches(spec, weights, x, normed, context), past


def add_branches(spec: LayerSpec, weights: Weights, x: Tensor, normed: Tensor, context: Tensor) -> Tensor:
    """Adds attention and MLP to x [tokens, hidden_size], the scaled input of a layer. `normed` is x after the first
    norm, `context` the result of `attend`."""
    x = x + project(weights, "o_proj", context) * spec.residual_scale
    if not spec.parallel:
        normed = norm(spec.norm, weights, x, "mlp_norm")
    return x + mlp(spec, weights, normed) * spec.residual_scale


def post(spec: PostSpec, weights: Weights, x: Tensor) -> Tensor:
    """x [tokens, hidden_size] -> logits [tokens, vocab_size]."""
    return project(weights, "lm_head", norm(spec.norm, weights, x, "norm") * spec.logit_scale)


def project(weights: Weights, role: str, x: Tensor) -> Tensor:
    """The linear layer of that role on x [..., in_features], with its bias if it has one."""
    bias = weights.get(f"{role}.bias")
    if not isinstance(weights, StreamedWeights):
        return F.linear(x, weights[f"{role}.weight"], bias)
    y = torch.cat([F.linear(x, rows) for rows in weights.rows(f"{role}.weight")], -1)
    return y if bias is None else y + bias


@dataclass(frozen=True)
class Oracle:
    """A whole model in fp32. `layer_weights(i)`, `post_weights()` and `embed(ids)` load its weights on demand.

    `max_length` is the max_length sequence that the compared files hold (`Recipe.positions`).
    """

    spec: DecoderSpec
    layer_weights: Callable[[int], Weights]
    post_weights: Callable[[], Weights]
    embed: Callable[[Sequence[int]], Tensor]
    max_length: int = 1

    def scaled_by_host(self) -> Oracle:
        """The same model, whose embedding rows are scaled, and rounded to bf16, before layer 0."""
        scale = self.spec.embedding_scale
        return replace(
            self,
            spec=replace(self.spec, embedding_scale=1.0),
            embed=lambda ids: (self.embed(ids) * scale).bfloat16().float(),
        )

    def layer(self, index: int, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """Runs layer `index` on x [tokens, hidden_size], which follows the tokens of `past`."""
        with torch.inference_mode():
            return layer(self.spec.layer_spec(index), self.layer_weights(index), x, past, self.max_length)

    def hidden_states(self, ids: Sequence[int]) -> Iterator[Tensor]:
        """Yields the input of layer 0, then each layer's output, [tokens, hidden_size], holding one layer's weights."""
        x = self.embed(ids)
        yield x
        for index in range(self.spec.num_hidden_layers):
            x, _ = self.layer(index, x)
            yield x

    def logits(self, ids: Sequence[int], first: int = 0) -> Tensor:
        """Logits [tokens - first, vocab_size] after each token from number `first` on."""
        for x in self.hidden_states(ids):
            last = x
        with torch.inference_mode():
            return post(self.spec.post, self.post_weights(), last[first:])

    def greedy(self, prompt: Sequence[int], tokens: int) -> Iterator[tuple[int, Tensor]]:
        """Greedy decoding: yields `tokens` tokens, each with the logits [vocab_size] it was chosen from."""
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
