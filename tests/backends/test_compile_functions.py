"""Compiling from arrays in memory, without folder, lock or store."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from axzoo.backends import load_backend
from axzoo.backends.host.compiler import Compiled, compile_layer, compile_post
from axzoo.backends.host.container import METADATA_KEY, parse_header
from axzoo.checkpoint.tensors import Array
from axzoo.core.errors import AxzooError
from axzoo.model.rope import make_rope
from axzoo.model.spec import LayerSpec, NormSpec, PostSpec
from axzoo.weights.bf16 import write_embedding
from axzoo.weights.recipe import Recipe

SPEC = LayerSpec(
    hidden_size=8,
    intermediate_size=12,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    norm=NormSpec("rms_norm", 1e-5),
    rope=make_rope(4, 10000.0, {"rope_type": "default"}, 32),
    max_position_embeddings=32,
)
SHAPES = {
    "input_norm.weight": (8,), "mlp_norm.weight": (8,), "q_proj.weight": (8, 8), "k_proj.weight": (4, 8),
    "v_proj.weight": (4, 8), "o_proj.weight": (8, 8), "gate_proj.weight": (12, 8), "up_proj.weight": (12, 8),
    "down_proj.weight": (8, 12),
}  # fmt: skip
RECIPE = Recipe(prefill_len=4, kv_cache_len=15)


def _read(role: str) -> Iterable[Array]:
    """Random rows, one per block."""
    rng = np.random.default_rng(len(role))
    return (rng.standard_normal((1, *SHAPES[role][1:])).astype(np.float32) for _ in range(SHAPES[role][0]))


def _header(compiled: Compiled) -> Any:
    (entry,) = onnx.ModelProto.FromString(b"".join(compiled.pieces)).metadata_props
    assert entry.key == METADATA_KEY
    return parse_header(entry.value, Path("memory"))


def test_layer_metadata_with_weight_errors() -> None:
    compiled = compile_layer(SPEC, RECIPE, SHAPES, _read)
    matrices = {role.removesuffix(".weight") for role, shape in SHAPES.items() if len(shape) == 2}
    errors = compiled.about["weight_errors"]
    assert set(errors) == matrices
    assert all(0 < error < 0.02 for error in errors.values())
    header = _header(compiled)
    assert (header.kind, len(header.groups)) == ("decoder_layer", 2)
    assert header.about == compiled.about
    assert header.about == {"weight_type": "s8", "hidden_state_type": "bf16", "weight_errors": errors}
    exact = compile_layer(SPEC, replace(RECIPE, weight_type="fp32"), SHAPES, _read)
    assert set(exact.about["weight_errors"].values()) == {0.0}


def test_layer_metadata_with_storage_options() -> None:
    spec, shapes = _wide(32)
    recipe = replace(RECIPE, weight_type="s4", weight_group_size=32, scale_rule="mse")
    rng = np.random.default_rng(0)
    compiled = compile_layer(spec, recipe, shapes, lambda role: [rng.standard_normal(shapes[role]).astype(np.float32)])
    about = _header(compiled).about
    assert {key: about[key] for key in ("weight_type", "weight_group_size", "scale_rule")} == {
        "weight_type": "s4",
        "weight_group_size": 32,
        "scale_rule": "mse",
    }
    assert all(0.05 < error < 0.15 for error in about["weight_errors"].values())


def test_group_size_that_does_not_divide_a_matrix() -> None:
    spec, shapes = _wide(48)
    recipe = replace(RECIPE, weight_type="s8", weight_group_size=32)
    message = "^down_proj.weight: weight_group_size 32 does not divide its 48 input features"
    with pytest.raises(AxzooError, match=message):
        compile_layer(spec, recipe, shapes, lambda role: [np.ones(shapes[role], np.float32)])


def _wide(intermediate_size: int) -> tuple[LayerSpec, dict[str, tuple[int, ...]]]:
    """A layer whose matrices have 32 input features, except down_proj."""
    spec = replace(SPEC, hidden_size=32, intermediate_size=intermediate_size, num_attention_heads=8)
    sizes = {8: 32, 12: intermediate_size}
    shapes = {role: tuple(sizes.get(length, length) for length in shape) for role, shape in SHAPES.items()}
    return spec, shapes


def test_a_layer_without_prefill_has_one_group() -> None:
    compiled = compile_layer(SPEC, replace(RECIPE, prefill_len=0), SHAPES, _read)
    assert [group.inputs[3].shape for group in _header(compiled).groups] == [(1, 1, 8)]


def test_post_layer_metadata() -> None:
    def read(role: str) -> Iterable[Array]:
        return [np.ones((5, 8) if role == "lm_head.weight" else 8, np.float32)]

    compiled = compile_post(
        PostSpec(8, 5, NormSpec("rms_norm", 1e-5)), RECIPE, {"lm_head.weight": (5, 8), "norm.weight": (8,)}, read
    )
    header = _header(compiled)
    assert header.kind == "post"
    assert header.about["weight_type"] == "s8"
    assert list(header.about["weight_errors"]) == ["lm_head"]


def test_a_post_layer_with_every_option() -> None:
    """LayerNorm with a scaled result, and an lm_head whose bias is not scaled."""
    rng = np.random.default_rng(0)
    shapes = {"lm_head.weight": (5, 8), "lm_head.bias": (5,), "norm.weight": (8,), "norm.bias": (8,)}
    stored = {role: rng.standard_normal(shape).astype(np.float32) for role, shape in shapes.items()}
    spec = PostSpec(8, 5, NormSpec("layer_norm", 0.25), lm_head_bias=True, logit_scale=0.125)
    recipe = replace(RECIPE, post_weight_type="fp32", hidden_state_type="fp32")
    compiled = compile_post(spec, recipe, shapes, lambda role: [stored[role]])
    x = rng.standard_normal((1, 1, 8)).astype(np.float32)
    (found,) = ReferenceEvaluator(onnx.ModelProto.FromString(b"".join(compiled.pieces))).run(None, {"input": x})
    apart = x.astype(np.float64) - x.mean(dtype=np.float64)
    normed = apart / np.sqrt((apart**2).mean() + 0.25) * stored["norm.weight"] + stored["norm.bias"]
    assert_allclose(found, 0.125 * normed @ stored["lm_head.weight"].T + stored["lm_head.bias"], rtol=1e-5, atol=1e-6)


def test_post_layer_with_topk_and_postnorm() -> None:
    rng = np.random.default_rng(1)
    stored = {
        "lm_head.weight": rng.standard_normal((50, 8)).astype(np.float32),
        "norm.weight": rng.standard_normal(8).astype(np.float32),
    }
    spec = PostSpec(8, 50, NormSpec("rms_norm", 1e-6), logit_scale=0.5)
    recipe = replace(RECIPE, post_weight_type="fp32", hidden_state_type="fp32", post_topk=7, ret_postnorm=True)
    shapes = {role: array.shape for role, array in stored.items()}
    model = onnx.ModelProto.FromString(b"".join(compile_post(spec, recipe, shapes, lambda role: [stored[role]]).pieces))
    onnx.checker.check_model(model, full_check=True)
    x = rng.standard_normal((1, 1, 8)).astype(np.float32)
    indices, prob, postnorm = ReferenceEvaluator(model).run(["indices", "prob", "postnorm"], {"input": x})
    normed = x.astype(np.float64) / np.sqrt((x.astype(np.float64) ** 2).mean() + 1e-6) * stored["norm.weight"]
    logits = (0.5 * normed @ stored["lm_head.weight"].T).ravel()
    probabilities = np.exp(logits) / np.exp(logits).sum()
    best = np.argsort(-logits)[:7]
    assert (indices.dtype, prob.dtype, postnorm.dtype) == (np.int32, np.float32, np.float32)
    assert_array_equal(indices, best[None, None])
    assert_allclose(prob, probabilities[best][None, None], rtol=1e-5)
    assert_allclose(postnorm, normed, rtol=1e-5)


def test_topk_exceeds_the_vocabulary() -> None:
    shapes = {"lm_head.weight": (5, 8), "norm.weight": (8,)}
    with pytest.raises(AxzooError, match="post_topk 6 exceeds the vocabulary of 5 tokens"):
        compile_post(PostSpec(8, 5, NormSpec("rms_norm", 1e-5)), replace(RECIPE, post_topk=6), shapes, _read)


@pytest.mark.parametrize("recipe, positions", [(Recipe(prefill_len=4, kv_cache_len=33), 33), (Recipe(), 1023)])
def test_more_positions_than_the_model_supports(recipe: Recipe, positions: int) -> None:
    message = f"kv_cache_len {recipe.kv_cache_len} is too large: it needs {positions} positions, .* supports 32"
    with pytest.raises(AxzooError, match=message):
        compile_layer(SPEC, recipe, SHAPES, _read)


def test_every_position_of_the_model_can_be_used() -> None:
    compiled = compile_layer(SPEC, Recipe(prefill_len=4, kv_cache_len=31), SHAPES, _read)
    decode = _header(compiled).groups[0]
    assert [tensor.shape for tensor in decode.inputs if tensor.name == "mask"] == [(1, 1, 32)]


def test_unknown_backend() -> None:
    assert load_backend("host").name == "host"
    for name in ("pulsar9", "../host", "", "host.py", "part_job"):
        with pytest.raises(AxzooError, match=f"unknown backend '{name}'; known backends: host"):
            load_backend(name)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=12))
def test_the_embedding_is_bf16_rounded_to_nearest_even(values: list[float]) -> None:
    table = np.array(values, np.float32)[:, None]
    file = io.BytesIO()
    write_embedding([table[:1], table[1:]], file)
    assert file.getvalue() == b"".join(_bf16(value) for value in values)


def _bf16(value: float) -> bytes:
    """The upper 16 bits of fp32 after adding 0x7FFF, or 0x8000 if the lowest kept bit is 1."""
    bits = int(struct.unpack("<I", struct.pack("<f", value))[0])
    return struct.pack("<H", (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_embedding_from_any_dtype(dtype: Any) -> None:
    rows: NDArray[Any] = np.array([[1.0, -2.0], [0.5, 3.0]]).astype(dtype)
    file = io.BytesIO()
    write_embedding([rows], file)
    assert file.getvalue().hex() == "803f00c0003f4040"
