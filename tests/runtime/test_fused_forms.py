"""The fused session of fast mode against separate layer sessions, for layers of every form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from axzoo.backends.host.compiler import Compiled, compile_layer, compile_post
from axzoo.core.dtypes import NUMPY_DTYPES
from axzoo.model.spec import LayerSpec, NormSpec, PostSpec, RopeSpec
from axzoo.runtime.decoder import Decoder
from axzoo.runtime.engine import InferenceSession
from axzoo.runtime.fast.network import CopiedCaches, FusedNetwork, InPlaceCaches
from axzoo.runtime.model import LayerwiseNetwork, Outputs
from axzoo.weights.recipe import Recipe

CHUNK, CONTEXT, LAYERS, VOCAB_SIZE = 4, 15, 3, 50
RECIPE = Recipe(
    "fp32",
    post_weight_type="fp32",
    hidden_state_type="fp32",
    prefill_len=CHUNK,
    kv_cache_len=CONTEXT,
    last_kv_cache_len=(CHUNK,),
)
LONG = replace(RECIPE, prefill_len=16, kv_cache_len=47, last_kv_cache_len=(16,))
"""Chunks long enough for the prefill session."""

PLAIN = LayerSpec(64, 96, 4, 2, 16, NormSpec("rms_norm", 1e-5), RopeSpec(100.0, 16), 64)
"""head_dim 16, for which GroupQueryAttention applies the rotary embedding itself."""

ROTATED_INSIDE = {
    "plain": PLAIN,
    "interleaved": replace(PLAIN, rope=RopeSpec(100.0, 16, interleaved=True)),
    "partial": replace(PLAIN, head_dim=32, rope=RopeSpec(100.0, 16)),
    "partial, interleaved": replace(PLAIN, head_dim=32, rope=RopeSpec(100.0, 16, interleaved=True)),
    "window": replace(PLAIN, sliding_window=3),
    "window of one": replace(PLAIN, sliding_window=1),
    "window longer than the context": replace(PLAIN, sliding_window=40),
    "biases": replace(PLAIN, qkv_bias=True, o_bias=True, mlp_bias=True),
    "scales": replace(PLAIN, input_scale=3.0, residual_scale=0.5),
    "parallel, layer norm, not gated": replace(
        PLAIN, norm=NormSpec("layer_norm", 1e-5), parallel=True, gated=False, hidden_act="gelu_new"
    ),
    "parallel": replace(PLAIN, parallel=True),
    "one head of keys": replace(PLAIN, num_key_value_heads=1),
}
NOT_ROTATED = {
    "no rotation": replace(PLAIN, rope=RopeSpec(100.0, 0)),
    "no rotation, heads of 8, window": replace(PLAIN, head_dim=8, rope=RopeSpec(100.0, 0), sliding_window=3),
}
ROTATED_OUTSIDE = {
    "heads of 8": replace(PLAIN, head_dim=8, rope=RopeSpec(100.0, 8)),
    "heads of 8, window": replace(PLAIN, head_dim=8, rope=RopeSpec(100.0, 8), sliding_window=3),
    "a rotation of 8 of 16": replace(PLAIN, rope=RopeSpec(100.0, 8)),
}
COPIED = {
    "heads of 12": replace(PLAIN, num_attention_heads=8, head_dim=12, rope=RopeSpec(100.0, 12)),
    "heads of 4, window": replace(PLAIN, num_attention_heads=8, head_dim=4, rope=RopeSpec(100.0, 4), sliding_window=3),
    "heads of 12, no rotation": replace(PLAIN, num_attention_heads=8, head_dim=12, rope=RopeSpec(100.0, 0)),
}
HEAD_NORM = {"head norm": replace(PLAIN, qk_norm=True)}
ALL = ROTATED_INSIDE | HEAD_NORM | NOT_ROTATED | ROTATED_OUTSIDE | COPIED


@pytest.mark.parametrize("name", ALL)
def test_every_form_is_equal_in_fp32(tmp_path: Path, name: str) -> None:
    """A prompt in chunks, a shorter prompt after a rewind, then single tokens until the context is full."""
    exact, fused = _networks(tmp_path, ALL[name], RECIPE)
    rows = _rows(PLAIN.hidden_size)
    assert_allclose(_logits(fused.prefill(rows[:9])), _logits(exact.prefill(rows[:9])), atol=2e-5)
    for network in (exact, fused):
        network.rewind(2)
    assert_allclose(_logits(fused.prefill(rows[4:7])), _logits(exact.prefill(rows[4:7])), atol=2e-5)
    while exact.used < CONTEXT:
        row = rows[exact.used][None]
        assert_allclose(_logits(fused.decode(row)), _logits(exact.decode(row)), atol=2e-5)
    assert fused.used == CONTEXT


@pytest.mark.parametrize("name", ALL)
def test_caches_are_updated_in_place_if_head_dim_allows(tmp_path: Path, name: str) -> None:
    _, fused = _networks(tmp_path, ALL[name], RECIPE)
    assert isinstance(fused._caches[0], CopiedCaches if name in COPIED else InPlaceCaches)
    inputs = {tensor.name for tensor in fused._sessions[0].get_inputs()}
    assert ("indices" in inputs) is (name in ROTATED_OUTSIDE | COPIED and ALL[name].rope.rotary_dim > 0)
    assert ("mask" in inputs) is (name in COPIED)


@pytest.mark.parametrize("state", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ALL)
def test_16_bit_hidden_states_come_close(tmp_path: Path, name: str, state: str) -> None:
    exact, fused = _networks(tmp_path, ALL[name], replace(RECIPE, hidden_state_type=state))
    rows = _rows(PLAIN.hidden_size).astype(NUMPY_DTYPES[state])
    for count in (9, 1, 1):
        expected, found = (_logits(one.prefill(rows[one.used : one.used + count])) for one in (exact, fused))
        close = 8 * float(ml_dtypes.finfo(NUMPY_DTYPES[state]).eps)
        assert_allclose(found, expected, atol=close, rtol=close)


@pytest.mark.parametrize(
    "integers", [{"weight_type": "s8"}, {"weight_type": "s4"}, {"weight_type": "s4", "weight_group_size": 32}]
)
@pytest.mark.parametrize("name", ALL)
def test_integer_weights_come_close(tmp_path: Path, name: str, integers: dict[str, Any]) -> None:
    exact, fused = _networks(tmp_path, ALL[name], replace(RECIPE, **integers))
    rows = _rows(PLAIN.hidden_size)
    for count in (9, 1, 1):
        expected, found = (_logits(one.prefill(rows[one.used : one.used + count])) for one in (exact, fused))
        assert np.corrcoef(found, expected)[0, 1] > 0.999


@pytest.mark.parametrize("weight_type", ["s8", "s4"])
@pytest.mark.parametrize("name", ALL)
def test_the_prefill_session_is_nearly_exact(tmp_path: Path, name: str, weight_type: str) -> None:
    """Long prompts in the 16-bit session, short prompts and single tokens in the 8-bit session, on the same context."""
    recipe = replace(LONG, weight_type=weight_type, post_weight_type="s8")
    exact, fused = _networks(tmp_path, ALL[name], recipe, separate_prefill=True)
    rows = np.concatenate([_rows(PLAIN.hidden_size)] * 3)
    for count, close in ((32, 2e-3), (1, 0.2), (3, 0.2), (8, 0.2)):
        expected, found = (_logits(one.prefill(rows[one.used : one.used + count])) for one in (exact, fused))
        assert_allclose(found, expected, atol=close)
    for network in (exact, fused):
        network.rewind(16)
    assert_allclose(_logits(fused.prefill(rows[3:12])), _logits(exact.prefill(rows[3:12])), atol=2e-3)


@pytest.mark.parametrize(
    "weights",
    [
        {"weight_type": "s8", "post_weight_type": "s8"},
        {"weight_type": "s4", "post_weight_type": "s8"},
        {"weight_type": "s4", "post_weight_type": "s8", "weight_group_size": 32},
        {"weight_type": "s8", "post_weight_type": "bf16"},
        {"weight_type": "bf16", "post_weight_type": "s8"},
    ],
)
def test_there_is_a_prefill_session_only_if_all_weights_have_one_scale_per_column(
    tmp_path: Path, weights: dict[str, Any]
) -> None:
    _, fused = _networks(tmp_path, PLAIN, replace(LONG, **weights), separate_prefill=True)
    per_column = weights["weight_type"] in ("s4", "s8") and weights["post_weight_type"] == "s8"
    assert len(fused._sessions) == (2 if per_column and "weight_group_size" not in weights else 1)


def test_there_is_no_prefill_session_if_sums_saturate_on_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axzoo.runtime.fast.network.has_exact_int8_matmul", lambda _options: False)
    recipe = replace(LONG, weight_type="s8", post_weight_type="s8")
    exact, fused = _networks(tmp_path, PLAIN, recipe, separate_prefill=True)
    assert len(fused._sessions) == 1
    rows = _rows(PLAIN.hidden_size)
    assert np.corrcoef(_logits(fused.prefill(rows)), _logits(exact.prefill(rows)))[0, 1] > 0.999


def test_a_topk_post_layer(tmp_path: Path) -> None:
    exact, fused = _networks(tmp_path, PLAIN, replace(RECIPE, post_topk=3))
    assert exact.has_topk and fused.has_topk
    expected, found = (network.prefill(_rows(PLAIN.hidden_size)[:6]) for network in (exact, fused))
    assert_array_equal(found["indices"], expected["indices"])
    assert_allclose(found["prob"], expected["prob"], atol=1e-5)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[onnx.ModelProto]:
    """The graphs of all sessions that a test creates."""
    found: list[onnx.ModelProto] = []
    usual = onnxruntime.InferenceSession

    def record(model: str | bytes, *args: object, **options: object) -> object:
        if isinstance(model, bytes):
            found.append(onnx.load_model_from_string(model))
        return usual(model, *args, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    return found


SHORT = replace(RECIPE, weight_type="s8", post_weight_type="s8", hidden_state_type="bf16")


def _fused(loaded: list[onnx.ModelProto]) -> list[onnx.ModelProto]:
    """The fused graphs among the loaded models. The others are those of exact mode, and a test of the processor."""
    return [model for model in loaded if any(node.op_type == "GroupQueryAttention" for node in model.graph.node)]


def test_the_operators_of_the_fused_graph(tmp_path: Path, loaded: list[onnx.ModelProto]) -> None:
    """One product yields q, k and v, another gate and up; no value between layers is cast or copied."""
    _networks(tmp_path, PLAIN, SHORT)
    (model,) = _fused(loaded)
    assert Counter(node.op_type for node in model.graph.node) == {
        "MatMulNBits": 4 * LAYERS + 1,
        "GroupQueryAttention": LAYERS,
        "RMSNormalization": 2,
        "SkipSimplifiedLayerNormalization": 2 * LAYERS - 1,
        "Split": LAYERS,
        "Sigmoid": LAYERS,
        "Mul": 2 * LAYERS,
        "Add": 1,
        "Slice": 1,
        "Cast": 2,  # the embedding and the logits
    }


def test_the_operators_of_the_prefill_session(tmp_path: Path, loaded: list[onnx.ModelProto]) -> None:
    """Outputs of norms share one scale; outputs of attention and activation functions have one per row."""
    _networks(tmp_path, PLAIN, SHORT, separate_prefill=True)
    decode, prefill = _fused(loaded)
    counts, usual = (Counter(node.op_type for node in model.graph.node) for model in (prefill, decode))
    after_norm, others = 2 * LAYERS + 1, 2 * LAYERS
    products = {
        "MatMulIntegerToFloat": 2 * (after_norm + others),
        "DynamicQuantizeLinear": after_norm,
        "QuantizeLinear": after_norm + 2 * others,
        "DequantizeLinear": after_norm + others,
        "Sub": after_norm + others,
        "Add": after_norm + others,
        "Mul": after_norm + others,
        **dict.fromkeys(("Abs", "ReduceMax", "Clip", "Div"), others),
    }
    del usual["MatMulNBits"]
    assert counts == usual + Counter(products)


def _networks(
    folder: Path, spec: LayerSpec, recipe: Recipe, separate_prefill: bool = False
) -> tuple[LayerwiseNetwork, FusedNetwork]:
    paths = [folder / f"layer{index}" for index in range(LAYERS)]
    for index, path in enumerate(paths):
        _compile(compile_layer, spec, recipe, _tensors(spec, index), path)
    post = folder / "post"
    head = np.random.default_rng(2).standard_normal((VOCAB_SIZE, spec.hidden_size)).astype(np.float32) / 8
    _compile(
        compile_post,
        PostSpec(spec.hidden_size, VOCAB_SIZE, NormSpec("rms_norm", 1e-5)),
        recipe,
        {"lm_head.weight": head, "norm.weight": np.ones(spec.hidden_size, np.float32)},
        post,
    )
    layered = LayerwiseNetwork(Decoder([InferenceSession(path) for path in paths]), InferenceSession(post))
    return layered, FusedNetwork(paths, post, lambda: None, separate_prefill)


def _compile(
    compile_part: Callable[..., Compiled], spec: object, recipe: Recipe, tensors: dict[str, Any], path: Path
) -> None:
    shapes = {role: tensor.shape for role, tensor in tensors.items()}
    path.write_bytes(b"".join(compile_part(spec, recipe, shapes, lambda role: [tensors[role]]).pieces))


def _logits(outputs: Outputs) -> NDArray[np.float32]:
    return outputs["output"].reshape(-1).astype(np.float32)


def _rows(width: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((CONTEXT, width)).astype(np.float32)


def _tensors(spec: LayerSpec, seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    hidden, inner, queries, keys = spec.hidden_size, spec.intermediate_size, spec.q_size, spec.kv_size
    matrices = {"q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden),
                "o_proj": (hidden, queries), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}  # fmt: skip
    if spec.gated:
        matrices["gate_proj"] = (inner, hidden)
    tensors = {
        f"{role}.weight": rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[1]))
        for role, shape in matrices.items()
    }
    biased = {"q_proj": spec.qkv_bias, "k_proj": spec.qkv_bias, "v_proj": spec.qkv_bias, "o_proj": spec.o_bias}
    biased |= dict.fromkeys({"up_proj", "down_proj", "gate_proj"} & matrices.keys(), spec.mlp_bias)
    for role, has_bias in biased.items():
        if has_bias:
            tensors[f"{role}.bias"] = rng.standard_normal(matrices[role][0]).astype(np.float32)
    for role in ["input_norm", *([] if spec.parallel else ["mlp_norm"])]:
        tensors[f"{role}.weight"] = rng.uniform(0.5, 1.5, hidden).astype(np.float32)
        if spec.norm.kind == "layer_norm":
            tensors[f"{role}.bias"] = rng.standard_normal(hidden).astype(np.float32)
    if spec.qk_norm:
        for role in ("q_norm", "k_norm"):
            tensors[f"{role}.weight"] = rng.uniform(0.5, 1.5, spec.head_dim).astype(np.float32)
    return tensors
