"""The shape groups of compiled files: the exact input and output tensors of one call, as on boards.

Group 0 is decode, groups 1..N are the prefill chunks. The two caches of group 1 are dummies [1, 1, hidden_size] that
are never read; `unused` names them.
"""

from __future__ import annotations

from dataclasses import dataclass

from axzoo.model.spec import LayerSpec, PostSpec
from axzoo.weights.recipe import Recipe


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of one shape group."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ShapeGroup:
    """The exact input and output tensors of one call."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    unused: tuple[str, ...] = ()


def layer_groups(spec: LayerSpec, recipe: Recipe) -> tuple[ShapeGroup, ...]:
    """The shape groups of a decoder layer: decode, then prefill."""
    lengths = [(1, recipe.kv_cache_len)]
    if recipe.prefill_len:
        lengths += [(recipe.prefill_len, past) for past in (0, *recipe.last_kv_cache_len)]
    sizes = recipe.hidden_state_type, spec.hidden_size, spec.kv_size
    return tuple(layer_group(*sizes, tokens, past) for tokens, past in lengths)


def layer_group(state: str, hidden_size: int, kv_size: int, tokens: int, past: int) -> ShapeGroup:
    """The group for `tokens` new tokens after `past` cached ones. `state` is the dtype of the hidden state and the
    KV cache."""
    cache = (1, past, kv_size) if past else (1, 1, hidden_size)
    return ShapeGroup(
        inputs=(
            TensorSpec("K_cache", state, cache),
            TensorSpec("V_cache", state, cache),
            TensorSpec("indices", "uint32", (1, tokens)),
            TensorSpec("input", state, (1, tokens, hidden_size)),
            TensorSpec("mask", state, (1, tokens, past + tokens)),
        ),
        outputs=(
            TensorSpec("K_cache_out", state, (1, tokens, kv_size)),
            TensorSpec("V_cache_out", state, (1, tokens, kv_size)),
            TensorSpec("output", state, (1, tokens, hidden_size)),
        ),
        unused=() if past else ("K_cache", "V_cache"),
    )


def post_groups(spec: PostSpec, recipe: Recipe) -> tuple[ShapeGroup, ...]:
    """The shape group of the post layer: the hidden state of one token in, its logits or `post_topk` tokens out."""
    state, k = recipe.hidden_state_type, recipe.post_topk
    outputs = [TensorSpec("output", state, (1, 1, spec.vocab_size))]
    if k:
        outputs = [TensorSpec("indices", "int32", (1, 1, k)), TensorSpec("prob", "fp32", (1, 1, k))]
    if recipe.ret_postnorm:
        outputs.append(TensorSpec("postnorm", state, (1, 1, spec.hidden_size)))
    return (ShapeGroup(inputs=(TensorSpec("input", state, (1, 1, spec.hidden_size)),), outputs=tuple(outputs)),)
