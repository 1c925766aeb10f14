"""Every family against transformers: the oracle, and the whole built model, on small random checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - teaches numpy the name bfloat16
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from axzoo.check.metrics import cosine
from axzoo.model.families import load_family
from axzoo.model.oracle import Oracle, Weights
from axzoo.parts.checkpoint_oracle import checkpoint_oracle
from axzoo.parts.lock import make_lock, write_lock
from axzoo.runtime.buffers import Embedding
from axzoo.runtime.fast.network import FusedNetwork
from axzoo.runtime.model import Model
from axzoo.weights.recipe import Recipe
from tiny_model import EXACT, Built, Checkpoint, build, make_checkpoint

PROMPT, TOKENS = 21, EXACT.positions
"""Three prefill chunks of 8, the last one padded, then decoding until the cache is full, which is the length that
rope types which depend on it are compiled for."""

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.5}

AWKWARD = {
    "num_hidden_layers": 3, "hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1, "vocab_size": 263,
    "initializer_range": 56**-0.5,  # larger weights would amplify the rounding to bf16 over three layers
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 32}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}


def _longrope(pairs: int, trained: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "short_factor": [1.0 + 0.1 * pair for pair in range(pairs)],
        "long_factor": [1.5 + 0.3 * pair for pair in range(pairs)],
        "original_max_position_embeddings": trained,
    }


def _variant(model_type: str, dtype: str = "F32", old_config: bool = False, **shape: Any) -> dict[str, Any]:
    return {"model_type": model_type, "dtype": dtype, "old_config": old_config, "shape": shape}


WINDOW = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
GQA7 = {"num_attention_heads": 7, "num_key_value_heads": 1, "hidden_size": 28}
TABLE: dict[str, dict[str, Any]] = {
    "llama": _variant("llama"),
    "llama, gqa 7:1, heads wider than hidden_size": _variant("llama", head_dim=8, **GQA7),
    "llama, every bias": _variant("llama", attention_bias=True, mlp_bias=True),
    "llama, attention bias alone": _variant("llama", attention_bias=True),
    "llama, tied": _variant("llama", tie_word_embeddings=True),
    "llama, linear rope": _variant("llama", rope_parameters=LINEAR),
    "llama, llama3 rope": _variant("llama", rope_parameters=LLAMA3, head_dim=16),
    "llama, yarn rope": _variant("llama", rope_parameters=YARN, head_dim=16),
    "llama, dynamic rope within its length": _variant("llama", rope_parameters=DYNAMIC),
    "llama, odd vocabulary, full attention": _variant("llama", vocab_size=263, num_key_value_heads=4),
    "llama, sharded": {**_variant("llama"), "shard_size": "20KB"},
    "llama, bf16 on disk": _variant("llama", "BF16"),
    "llama, fp16 on disk": _variant("llama", "F16"),
    "llama, old config": _variant("llama", old_config=True),
    "llama, old config, llama3 rope, tied, bf16": _variant(
        "llama", "BF16", True, rope_parameters=LLAMA3, tie_word_embeddings=True
    ),
    "llama, old config, linear rope": _variant("llama", old_config=True, rope_parameters=LINEAR),
    "qwen2": _variant("qwen2"),
    "qwen2, gqa 7:1, tied, bf16": _variant("qwen2", "BF16", tie_word_embeddings=True, **GQA7),
    "qwen2, sliding window in the second layer": _variant("qwen2", **WINDOW),
    "qwen2, old config, yarn": _variant("qwen2", old_config=True, rope_parameters=YARN, head_dim=16),
    "qwen2, old config, sliding window": _variant("qwen2", old_config=True, **WINDOW),
    "qwen3": _variant("qwen3", head_dim=12),
    "qwen3, biases, sliding window": _variant("qwen3", head_dim=10, attention_bias=True, **WINDOW),
    "qwen3, old config, tied": _variant("qwen3", old_config=True, head_dim=12, tie_word_embeddings=True),
    "phi": _variant("phi", hidden_act="gelu_new"),
    "phi, old config, partial rotary 0.4": _variant(
        "phi", old_config=True, hidden_act="gelu_new", hidden_size=40, num_attention_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.4},
    ),
    "phi3": _variant("phi3"),
    "phi3, sliding window": _variant("phi3", sliding_window=6),
    "phi3, partial rotary 0.75, longrope, as Phi-4-mini": _variant(
        "phi3", head_dim=8, rope_parameters={**_longrope(3, 16), "partial_rotary_factor": 0.75}
    ),
    "phi3, longrope, short": _variant("phi3", rope_parameters=_longrope(4, 64)),
    "phi3, longrope, long": _variant("phi3", rope_parameters=_longrope(4, 16)),
    "phi3, old config, longrope, tied, bf16": _variant(
        "phi3", "BF16", True, rope_parameters=_longrope(4, 64), tie_word_embeddings=True
    ),
    "smollm3, no rotation in the fourth layer, tied": _variant("smollm3", num_hidden_layers=4),
    "smollm3, every bias, untied": _variant(
        "smollm3", attention_bias=True, mlp_bias=True, tie_word_embeddings=False, no_rope_layers=[0, 1]
    ),
    "smollm3, sliding window in the layer without rotation": _variant(
        "smollm3", use_sliding_window=True, sliding_window=5, no_rope_layers=[1, 0]
    ),
    "smollm3, sliding window in the layer with rotation": _variant(
        "smollm3", use_sliding_window=True, sliding_window=5, no_rope_layers=[1, 0],
        layer_types=["sliding_attention", "full_attention"],
    ),
    "smollm3, old config, sliding window": _variant(
        "smollm3", old_config=True, use_sliding_window=True, sliding_window=5, no_rope_layers=[0, 1]
    ),
}  # fmt: skip


def _with_every_rope() -> dict[str, dict[str, Any]]:
    """Each family with each rope type it supports, in odd sizes: 3 layers, GQA 7:1, a vocabulary of 263."""
    scalings = {
        "linear": LINEAR,
        "dynamic": {**DYNAMIC, "factor": 3.0},
        "llama3": LLAMA3,
        "yarn": YARN,
        "longrope": _longrope(4, 16),
    }
    table = {}
    for model_type in FAMILIES:
        shape = {**AWKWARD, **FAMILY_SHAPE.get(model_type, {})}
        part = {"partial_rotary_factor": 0.5} if model_type == "phi" else {}
        for kind in load_family(model_type).ROPE_TYPES[1:]:
            trained = 16 if kind == "dynamic" else 128  # the files hold 31 positions
            table[f"{model_type}, {kind}"] = _variant(
                model_type, rope_parameters=scalings[kind] | part, max_position_embeddings=trained, **shape
            )
    return table


FAMILY_SHAPE: dict[str, dict[str, Any]] = {
    "phi": {"hidden_act": "gelu_new", "hidden_size": 112},  # half of each head of 16 is rotated
    "qwen3": {"head_dim": 8},
    "smollm3": {"no_rope_layer_interval": 2},
}
FAMILIES = list(dict.fromkeys(row["model_type"] for row in TABLE.values()))
TABLE |= _with_every_rope()


@pytest.fixture(scope="module", params=TABLE.values(), ids=list(TABLE))
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tmp_path_factory.mktemp("variant"), **request.param)


def _ids(checkpoint: Checkpoint) -> list[int]:
    return [int(i) for i in np.random.default_rng(1).integers(0, checkpoint.model.config.vocab_size, TOKENS)]


def _all_logits(model: Model, ids: list[int]) -> NDArray[np.float32]:
    """Logits after each token: for the prompt from the last layer's hidden states, for the rest from decoding."""
    hidden: dict[int, NDArray[Any]] = {}  # by position; the last layer writes last
    final = model.prefill(ids[:PROMPT], lambda _, position, rows: hidden.update({position: rows}))
    logits = [model.logits(row) for row in np.concatenate(list(hidden.values()))[:, None, None]]
    np.testing.assert_array_equal(final, logits[-1])
    return np.stack(logits + [model.decode(token) for token in ids[PROMPT:]])


def _assert_close(found: NDArray[np.float32], wanted: NDArray[np.float32], tolerance: float) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()
    np.testing.assert_array_equal(found.argmax(-1), wanted.argmax(-1))


def test_the_oracle_agrees_with_transformers(variant: Checkpoint, tmp_path: Path) -> None:
    write_lock(make_lock(variant.folder, variant.model_type, variant.layers), tmp_path, variant.folder, {})
    oracle = checkpoint_oracle(tmp_path, variant.source, EXACT.positions)
    ids = _ids(variant)
    wanted = variant.logits(ids)
    _assert_close(oracle.logits(ids).numpy(), wanted, 2e-5)
    chosen, logits = zip(*oracle.greedy(ids[:PROMPT], TOKENS - PROMPT + 1), strict=True)
    whole = variant.logits([*ids[:PROMPT], *chosen[:-1]])[PROMPT - 1 :]
    _assert_close(torch.stack(logits).numpy(), whole, 2e-5)
    assert list(chosen) == whole.argmax(-1).tolist()


def test_the_built_model_agrees_with_transformers(variant: Checkpoint, tmp_path: Path) -> None:
    ids = _ids(variant)
    model = build(variant, EXACT, tmp_path).model(variant)
    _assert_close(_all_logits(model, ids), variant.logits(ids), 2e-4)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_bf16_hidden_states_are_close_in_every_family(tmp_path: Path, model_type: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", **TABLE[f"{model_type}, longrope"])
    model = build(checkpoint, replace(EXACT, hidden_state_type="bf16"), tmp_path).model(checkpoint)
    ids = _ids(checkpoint)
    assert min(map(cosine, _all_logits(model, ids), checkpoint.logits(ids))) >= 0.9999


@pytest.mark.parametrize("model_type", FAMILIES)
def test_fast_mode_chooses_the_same_tokens_in_every_family(tmp_path: Path, model_type: str) -> None:
    shape = AWKWARD | FAMILY_SHAPE.get(model_type, {}) | {"hidden_size": 112}  # heads of 16, which the operator rotates
    checkpoint = make_checkpoint(tmp_path / "checkpoint", shape, model_type)
    built = build(checkpoint, EXACT, tmp_path)
    exact = built.model(checkpoint)
    embedding = Embedding(built.embedding, checkpoint.model.config.vocab_size, checkpoint.model.config.hidden_size)
    fast = Model(embedding, FusedNetwork(built.layers, built.post, lambda: None, separate_prefill=False))
    prompt = _ids(checkpoint)[:PROMPT]
    expected, found = exact.prefill(prompt), fast.prefill(prompt)
    while True:
        _assert_close(found, expected, 2e-4)
        if exact.is_full:
            break
        token = int(expected.argmax())
        expected, found = exact.decode(token), fast.decode(token)


@pytest.mark.parametrize("prefill_len, groups", [(0, ()), (21, ()), (4, tuple(range(4, 24, 4)))])
def test_the_chunk_size_does_not_matter(
    checkpoint: Checkpoint, tmp_path: Path, prefill_len: int, groups: tuple[int]
) -> None:
    ids = _ids(checkpoint)
    recipe = replace(EXACT, prefill_len=prefill_len, last_kv_cache_len=groups)
    model = build(checkpoint, recipe, tmp_path).model(checkpoint)
    _assert_close(_all_logits(model, ids), checkpoint.logits(ids), 2e-4)


@pytest.mark.parametrize("hidden_state_type", ["bf16", "fp16"])
def test_16_bit_hidden_states_are_close(
    checkpoint: Checkpoint, build_tiny: Callable[[Recipe], Built], hidden_state_type: Any
) -> None:
    ids = _ids(checkpoint)
    built = build_tiny(replace(EXACT, hidden_state_type=hidden_state_type))
    assert min(map(cosine, _all_logits(built.model(checkpoint), ids), checkpoint.logits(ids))) >= 0.9999


@pytest.mark.parametrize(
    "weight_type, post_weight_type", [("s8", "s8"), ("s8", "bf16"), ("fp32", "s8"), ("bf16", "bf16"), ("fp16", "fp32")]
)
def test_a_built_model_is_the_fp32_model_of_its_stored_weights(
    checkpoint: Checkpoint, build_tiny: Callable[[Recipe], Built], weight_type: Any, post_weight_type: Any
) -> None:
    """Storing the weights is the only difference between a built model and its checkpoint."""
    built = build_tiny(replace(EXACT, weight_type=weight_type, post_weight_type=post_weight_type))
    ids = _ids(checkpoint)
    found, original = _all_logits(built.model(checkpoint), ids), checkpoint.logits(ids)
    stored = _oracle_of_files(built).logits(ids).numpy()
    _assert_close(found, stored, 2e-5)
    assert np.abs(stored - original).max() > 2e-4 * np.abs(original).max()
    assert min(map(cosine, found, original)) > 0.99


def _oracle_of_files(built: Built) -> Oracle:
    whole = checkpoint_oracle(built.locks, built.source, built.recipe.positions)
    return replace(
        whole,
        layer_weights=lambda index: _dequantized(built.layers[index]),
        post_weights=lambda: _dequantized(built.post),
    )


def _dequantized(path: Path) -> Weights:
    """The weights of a file by role, [out_features, in_features], taken from its initializers."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    weights = {}
    for name, values in stored.items():
        role, _, kind = name.rpartition(".")
        if kind in ("weight", "bias"):
            restored = values.astype(np.float32) * stored.get(f"{role}.scale", np.float32(1))
            weights[name] = torch.from_numpy(np.ascontiguousarray(restored.T))
    return weights
