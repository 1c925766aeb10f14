"""Compiled files: valid standard ONNX, the documented tensors, reproducible bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from axzoo.runtime.engine import InferenceSession
from axzoo.weights.recipe import Recipe
from tiny_model import EXACT, Built, Checkpoint, build

P, S, H, D, V = 8, 31, 32, 16, 262
"""prefill_len, kv_cache_len, hidden_size, kv_size and vocab_size of the small llama."""

STATES = pytest.mark.parametrize("state", ["fp32", "bf16", "fp16"])

Tensors = list[tuple[str, str, list[int]]]


def _tensors(nodes: list[Any]) -> Tensors:
    return [(node.name, str(node.dtype), list(node.shape)) for node in nodes]


def test_layer_shape_groups_match_the_board(s8: Built) -> None:
    session = InferenceSession(s8.layers[0])
    assert session.num_shape_groups == 4
    assert _tensors(session.get_inputs(0)) == [
        ("K_cache", "bfloat16", [1, S, D]),
        ("V_cache", "bfloat16", [1, S, D]),
        ("indices", "uint32", [1, 1]),
        ("input", "bfloat16", [1, 1, H]),
        ("mask", "bfloat16", [1, 1, S + 1]),
    ]
    assert _tensors(session.get_outputs(0)) == [
        ("K_cache_out", "bfloat16", [1, 1, D]),
        ("V_cache_out", "bfloat16", [1, 1, D]),
        ("output", "bfloat16", [1, 1, H]),
    ]
    assert _tensors(session.get_inputs(1)) == [
        ("K_cache", "bfloat16", [1, 1, H]),
        ("V_cache", "bfloat16", [1, 1, H]),
        ("indices", "uint32", [1, P]),
        ("input", "bfloat16", [1, P, H]),
        ("mask", "bfloat16", [1, P, P]),
    ]
    assert _tensors(session.get_inputs(3)) == [
        ("K_cache", "bfloat16", [1, 2 * P, D]),
        ("V_cache", "bfloat16", [1, 2 * P, D]),
        ("indices", "uint32", [1, P]),
        ("input", "bfloat16", [1, P, H]),
        ("mask", "bfloat16", [1, P, 3 * P]),
    ]
    for group in (1, 2, 3):
        assert _tensors(session.get_outputs(group)) == [
            ("K_cache_out", "bfloat16", [1, P, D]),
            ("V_cache_out", "bfloat16", [1, P, D]),
            ("output", "bfloat16", [1, P, H]),
        ]


def test_the_post_layer_takes_one_token(s8: Built) -> None:
    session = InferenceSession(s8.post)
    assert session.num_shape_groups == 1
    assert _tensors(session.get_inputs()) == [("input", "bfloat16", [1, 1, H])]
    assert _tensors(session.get_outputs()) == [("output", "bfloat16", [1, 1, V])]


@STATES
@pytest.mark.parametrize(
    "weight_type, post_type",
    [("fp32", "fp32"), ("fp16", "fp8_e4m3"), ("bf16", "bf16"), ("s8", "s8"), ("s4", "fp8_e5m2")],
)
def test_standard_onnx(build_tiny: Callable[[Recipe], Built], weight_type: Any, post_type: Any, state: Any) -> None:
    built = build_tiny(
        replace(EXACT, weight_type=weight_type, post_weight_type=post_type, hidden_state_type=state, prefill_len=P)
    )
    element = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
    for path in (*built.layers, built.post):
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 23)]
        assert {node.domain for node in model.graph.node} == {""}
        assert not model.functions
        assert model.producer_name == "axzoo"
        declared = {value.name: value.type.tensor_type for value in (*model.graph.input, *model.graph.output)}
        for name, tensor in declared.items():
            assert tensor.elem_type == (onnx.TensorProto.UINT32 if name == "indices" else element[state])
    layer = onnx.load(built.layers[0]).graph
    assert [value.name for value in layer.input] == ["K_cache", "V_cache", "indices", "input", "mask"]
    assert [value.name for value in layer.output] == ["K_cache_out", "V_cache_out", "output"]
    assert {node.op_type for node in layer.node} >= {"Attention", "RotaryEmbedding", "RMSNormalization", "MatMul"}
    stored = {tensor.name: tensor.data_type for tensor in layer.initializer}
    integers = {"s8": onnx.TensorProto.INT8, "s4": onnx.TensorProto.INT4}
    assert stored["q_proj.weight"] == {**element, **integers}[weight_type]
    (head,) = (tensor for tensor in onnx.load(built.post).graph.initializer if tensor.name == "lm_head.weight")
    small_floats = {"fp8_e4m3": onnx.TensorProto.FLOAT8E4M3FN, "fp8_e5m2": onnx.TensorProto.FLOAT8E5M2}
    assert head.data_type == {**element, **integers, **small_floats}[post_type]


def test_s4_stores_two_weights_per_byte(build_tiny: Callable[[Recipe], Built], s8: Built) -> None:
    def sizes(built: Built) -> dict[str, int]:
        tensors = onnx.load(built.layers[0]).graph.initializer
        return {tensor.name: len(tensor.raw_data) for tensor in tensors if tensor.name.endswith("_proj.weight")}

    s4 = build_tiny(replace(s8.recipe, weight_type="s4"))
    assert {name: 2 * size for name, size in sizes(s4).items()} == sizes(s8)


@STATES
@pytest.mark.parametrize("weight_type", ["s8", "s4"])
@pytest.mark.parametrize("group", [0, 1, 3])
def test_onnx_reference_evaluator_agrees_with_the_engine(
    build_tiny: Callable[[Recipe], Built], state: Any, weight_type: Any, group: int
) -> None:
    """Another implementation of the ONNX standard computes the same results."""
    built = build_tiny(replace(EXACT, weight_type=weight_type, post_weight_type="s8", hidden_state_type=state))
    path = built.layers[1]
    session = InferenceSession(path)
    feed = make_feed(session, group)
    found = session.run(None, feed, shape_group=group)
    if group == 1:
        empty = np.zeros((1, 0, D), feed["input"].dtype)
        feed = {**feed, "K_cache": empty, "V_cache": empty}
    expected = ReferenceEvaluator(onnx.load(path)).run(None, feed)
    step = {"fp32": 1e-5, "bf16": 2**-7, "fp16": 2**-10}[state]  # one ulp
    for ours, theirs in zip(found, expected, strict=True):
        theirs = np.asarray(theirs)
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        scale = np.abs(theirs.astype(np.float32)).max()
        assert_allclose(ours.astype(np.float32), theirs.astype(np.float32), rtol=step, atol=step * scale)
    post = InferenceSession(built.post)
    row = {"input": feed["input"][:, :1]}
    (logits,) = map(np.asarray, ReferenceEvaluator(onnx.load(built.post)).run(None, row))
    assert_allclose(post.run(None, row)[0].astype(np.float32), logits.astype(np.float32), rtol=step, atol=1e-4)


def make_feed(session: InferenceSession, group: int) -> dict[str, NDArray[Any]]:
    """Random tensors of a shape group with a causal mask: decode at the last position, prefill after a full cache."""
    rng = np.random.default_rng(group)
    feed = {}
    for node in session.get_inputs(group):
        feed[node.name] = rng.standard_normal(node.shape).astype(node.dtype)
    tokens, total = feed["mask"].shape[1:]
    positions = np.arange(total - tokens, total) - (group == 0)
    feed["indices"] = positions.astype(np.uint32)[None]
    closed = np.arange(total) > positions[:, None]
    closed[:, -1] &= group > 0  # the slot of the decoded token
    feed["mask"] = np.where(closed, -6e4, 0).astype(feed["mask"].dtype)[None]
    return feed


def test_bytes_do_not_depend_on_process_or_cpu(
    checkpoint: Checkpoint, build_tiny: Callable[[Recipe], Built], s8: Built, tmp_path: Path
) -> None:
    """With another OpenBLAS CPU type, one thread, another hash seed, and an empty store."""
    environment = {"OPENBLAS_CORETYPE": "Prescott", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    searched = build_tiny(replace(s8.recipe, weight_type="s4", scale_rule="mse"))
    for name, expected, lock, recipe in [
        ("s8", s8.layers[0], "layer_0.json", s8.recipe),
        ("s4-mse", searched.layers[0], "layer_0.json", searched.recipe),
        ("post", s8.post, "post.json", s8.recipe),
    ]:
        target = tmp_path / name
        files = [f"--lock={s8.locks / lock}", f"--source={checkpoint.source}", f"--store={tmp_path / 'store'}"]
        command = [
            sys.executable,
            "-m",
            "axzoo.cli",
            "compile",
            *files,
            f"--output={target}",
            f"--receipt={target}.json",
        ]
        options = ["--chip=AX650", f"--recipe={json.dumps(recipe.to_dict())}"]
        subprocess.run([*command, *options], check=True, capture_output=True, env={**os.environ, **environment})
        assert target.read_bytes() == expected.read_bytes()


def test_bytes_do_not_depend_on_the_folder(checkpoint: Checkpoint, s8: Built, tmp_path: Path) -> None:
    again = build(checkpoint, s8.recipe, tmp_path)
    for path in (*s8.layers, s8.post, s8.embedding):
        assert (again.folder / path.name).read_bytes() == path.read_bytes()


def test_initializers_equal_the_checkpoint_weights(checkpoint: Checkpoint, exact: Built) -> None:
    weights = checkpoint.model.state_dict()
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(exact.layers[1]).graph.initializer}
    for role in ("q_proj", "k_proj", "v_proj", "o_proj"):
        assert (weights[f"model.layers.1.self_attn.{role}.weight"].numpy() == stored[f"{role}.weight"].T).all()
    for role in ("gate_proj", "up_proj", "down_proj"):
        assert (weights[f"model.layers.1.mlp.{role}.weight"].numpy() == stored[f"{role}.weight"].T).all()
