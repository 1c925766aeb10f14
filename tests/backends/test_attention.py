"""Attention with every option, compared with loops over heads and tokens in fp64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from run_block import run_block

from axzoo.backends.host.attention import attention, attention_mask, rotary_inputs
from axzoo.backends.host.builder import GraphBuilder
from axzoo.model.rope import rope_tables
from axzoo.model.spec import LayerSpec, NormSpec, RopeSpec
from axzoo.weights.encoding import FloatFormat
from axzoo.weights.stored import store_weight

HIDDEN, HEADS, KV_HEADS, DIM, CACHED, TOKENS = 10, 4, 2, 6, 5, 3
EPS = 0.125
SPEC = LayerSpec(HIDDEN, 8, HEADS, KV_HEADS, DIM, NormSpec("layer_norm", EPS), RopeSpec(100.0, DIM), 16)
RNG = np.random.default_rng(0)
SIZES = {"q_proj": HEADS * DIM, "k_proj": KV_HEADS * DIM, "v_proj": KV_HEADS * DIM, "o_proj": HIDDEN}
MATRICES = {role: RNG.standard_normal((rows, HEADS * DIM if role == "o_proj" else HIDDEN)).astype(np.float32)
            for role, rows in SIZES.items()}  # fmt: skip
VECTORS = {f"{role}.bias": RNG.standard_normal(rows).astype(np.float32) for role, rows in SIZES.items()}
NORMS = {f"{role}_norm.weight": RNG.standard_normal(DIM).astype(np.float32) for role in "qk"}
FEED = {
    "x": RNG.standard_normal((1, TOKENS, HIDDEN)).astype(np.float32),
    "K_cache": RNG.standard_normal((1, CACHED, KV_HEADS * DIM)).astype(np.float32),
    "V_cache": RNG.standard_normal((1, CACHED, KV_HEADS * DIM)).astype(np.float32),
    "indices": np.arange(CACHED, CACHED + TOKENS, dtype=np.uint32)[None],
    "mask": np.concatenate([np.zeros((TOKENS, CACHED)), np.triu(np.full((TOKENS, TOKENS), -6e4), 1)], 1)[None].astype(
        np.float32
    ),
}

VARIANTS = {
    "plain": (SPEC, {}),
    "biases": (SPEC, VECTORS),
    "head norm": (replace(SPEC, qk_norm=True), NORMS),
    "head norm, biases": (replace(SPEC, qk_norm=True), VECTORS | NORMS),
    "window": (replace(SPEC, sliding_window=2), {}),
    "interleaved, partial": (replace(SPEC, rope=RopeSpec(100.0, 4, True)), {}),
}


def _graph(g: GraphBuilder, spec: LayerSpec, vectors: Any, state: str) -> list[str]:
    weights = {role: store_weight(role, [m], m.shape, FloatFormat("fp32")) for role, m in MATRICES.items()}
    rotary = rotary_inputs(g, spec, 16, "indices")
    mask = attention_mask(g, spec.sliding_window, rotary)
    output = attention(g, spec, "x", rotary, mask, weights, vectors, state)
    return [output, g.cast("K_cache_out", "fp32", "k"), g.cast("V_cache_out", "fp32", "v")]


def _heads(spec: LayerSpec, vectors: Any, role: str) -> NDArray[np.float64]:
    """[tokens, heads, head_dim], normalized and rotated."""
    x = FEED["x"][0] @ MATRICES[f"{role}_proj"].T.astype(np.float64) + vectors.get(f"{role}_proj.bias", 0)
    heads = np.asarray(x).reshape(TOKENS, -1, DIM)
    if role == "v":
        return heads
    if spec.qk_norm:
        heads = heads / np.sqrt((heads**2).mean(-1, keepdims=True) + EPS) * vectors[f"{role}_norm.weight"]
    cos, sin = (table[CACHED : CACHED + TOKENS, None] for table in rope_tables(spec.rope, 16))
    dim = spec.rope.rotary_dim
    even = slice(0, dim, 2) if spec.rope.interleaved else slice(0, dim // 2)
    odd = slice(1, dim, 2) if spec.rope.interleaved else slice(dim // 2, dim)
    turned = heads.copy()
    turned[..., even] = heads[..., even] * cos - heads[..., odd] * sin
    turned[..., odd] = heads[..., odd] * cos + heads[..., even] * sin
    return turned


def _wanted(spec: LayerSpec, vectors: Any) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    query, key, value = (_heads(spec, vectors, role) for role in "qkv")
    keys = np.concatenate([FEED["K_cache"].reshape(CACHED, KV_HEADS, DIM), key])
    values = np.concatenate([FEED["V_cache"].reshape(CACHED, KV_HEADS, DIM), value])
    mixed = np.zeros((TOKENS, HEADS, DIM))
    for token in range(TOKENS):
        last = CACHED + token
        first = 0 if spec.sliding_window is None else max(0, last + 1 - spec.sliding_window)
        for head in range(HEADS):
            group = head // (HEADS // KV_HEADS)
            scores = np.exp(keys[first : last + 1, group] @ query[token, head] / DIM**0.5)
            mixed[token, head] = scores / scores.sum() @ values[first : last + 1, group]
    output = mixed.reshape(TOKENS, -1) @ MATRICES["o_proj"].T + vectors.get("o_proj.bias", 0)
    return output, key.reshape(TOKENS, -1), value.reshape(TOKENS, -1)


@pytest.mark.parametrize("spec, vectors", VARIANTS.values(), ids=VARIANTS)
def test_attention(spec: LayerSpec, vectors: Any) -> None:
    found = run_block(lambda g: _graph(g, spec, vectors, "fp32"), **FEED)
    for ours, expected in zip(found.values(), _wanted(spec, vectors), strict=True):
        assert_allclose(ours[0], expected, atol=2e-4 * np.abs(expected).max())


def test_the_variants_differ() -> None:
    results = [_wanted(spec, vectors)[0] for spec, vectors in VARIANTS.values()]
    plain = results.pop(0)
    assert all(np.abs(result - plain).max() > 0.05 * np.abs(plain).max() for result in results)


def test_attention_uses_new_rows_as_rounded_for_the_cache() -> None:
    feed = FEED | {name: FEED[name].astype(ml_dtypes.bfloat16) for name in ("K_cache", "V_cache")}
    output, key, value = run_block(lambda g: _graph(g, SPEC, {}, "bf16"), **feed).values()
    for array in (key, value):
        assert_array_equal(array, array.astype(ml_dtypes.bfloat16).astype(np.float32))
    later = {  # only the last token, with the others in the cache
        "x": FEED["x"][:, -1:],
        "K_cache": np.concatenate([feed["K_cache"].astype(np.float32), key[:, :-1]], 1).astype(ml_dtypes.bfloat16),
        "V_cache": np.concatenate([feed["V_cache"].astype(np.float32), value[:, :-1]], 1).astype(ml_dtypes.bfloat16),
        "indices": FEED["indices"][:, -1:],
        "mask": FEED["mask"][:, -1:],
    }
    alone, *_ = run_block(lambda g: _graph(g, SPEC, {}, "bf16"), **later).values()
    assert_allclose(alone[0, -1], output[0, -1], rtol=1e-5, atol=1e-5)
