"""The .axmodel container: shape groups by recipe, and the header round trip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from axzoo.backends.host.builder import GraphBuilder
from axzoo.backends.host.container import METADATA_KEY, SIZE_LIMIT, Pieces, parse_header, serialize
from axzoo.core.errors import AxzooError
from axzoo.model.rope import make_rope
from axzoo.model.spec import LayerSpec, NormSpec, PostSpec
from axzoo.parts.groups import ShapeGroup, TensorSpec, layer_groups, post_groups
from axzoo.weights.recipe import Recipe

NORM = NormSpec("rms_norm", 1e-6)
QWEN = LayerSpec(
    hidden_size=896,
    intermediate_size=4864,
    num_attention_heads=14,
    num_key_value_heads=2,
    head_dim=64,
    norm=NORM,
    rope=make_rope(64, 1e6, {"rope_type": "default"}, 32768),
    max_position_embeddings=32768,
    qkv_bias=True,
)


def test_groups_of_a_qwen2_layer() -> None:
    """The sizes of Qwen2-0.5B with the documented defaults: P = 128, S = 1023, D = 128."""
    decode, prefill = layer_groups(QWEN, Recipe())
    assert [(t.name, t.dtype, t.shape) for t in decode.inputs] == [
        ("K_cache", "bf16", (1, 1023, 128)),
        ("V_cache", "bf16", (1, 1023, 128)),
        ("indices", "uint32", (1, 1)),
        ("input", "bf16", (1, 1, 896)),
        ("mask", "bf16", (1, 1, 1024)),
    ]
    assert [(t.name, t.dtype, t.shape) for t in prefill.inputs] == [
        ("K_cache", "bf16", (1, 1, 896)),
        ("V_cache", "bf16", (1, 1, 896)),
        ("indices", "uint32", (1, 128)),
        ("input", "bf16", (1, 128, 896)),
        ("mask", "bf16", (1, 128, 128)),
    ]
    assert (decode.unused, prefill.unused) == ((), ("K_cache", "V_cache"))


def test_each_further_chunk_adds_a_group() -> None:
    groups = layer_groups(QWEN, Recipe(last_kv_cache_len=(128, 256), hidden_state_type="fp32"))
    assert [group.inputs[0].shape for group in groups] == [(1, 1023, 128), (1, 1, 896), (1, 128, 128), (1, 256, 128)]
    assert [group.inputs[4].shape for group in groups] == [(1, 1, 1024), *((1, 128, 128 * n) for n in (1, 2, 3))]
    assert {group.outputs[2] for group in groups[1:]} == {TensorSpec("output", "fp32", (1, 128, 896))}


def test_group_of_the_post_layer() -> None:
    (group,) = post_groups(PostSpec(896, 151936, NORM), Recipe())
    assert group == ShapeGroup(
        inputs=(TensorSpec("input", "bf16", (1, 1, 896)),), outputs=(TensorSpec("output", "bf16", (1, 1, 151936)),)
    )


def test_post_layer_outputs_follow_the_recipe() -> None:
    (group,) = post_groups(PostSpec(896, 151936, NORM), Recipe(post_topk=10, ret_postnorm=True))
    assert group.outputs == (
        TensorSpec("indices", "int32", (1, 1, 10)),
        TensorSpec("prob", "fp32", (1, 1, 10)),
        TensorSpec("postnorm", "bf16", (1, 1, 896)),
    )


def _graph() -> Pieces:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    return (graph.SerializeToString(),)


def test_header_round_trip() -> None:
    groups, about = layer_groups(QWEN, Recipe(last_kv_cache_len=(128,))), {"weight_type": "s8", "ü": [1, 0.5, None]}
    data = b"".join(serialize(_graph(), "decoder_layer", groups, about))
    (entry,) = onnx.ModelProto.FromString(data).metadata_props
    header = parse_header(entry.value, Path("x.axmodel"))
    assert entry.key == METADATA_KEY
    assert (header.kind, header.groups, header.about) == ("decoder_layer", groups, about)


def test_key_order_does_not_change_the_bytes() -> None:
    groups = post_groups(PostSpec(8, 9, NORM), Recipe())
    first, second = (serialize(_graph(), "post", groups, about) for about in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert first == second


def test_nan_is_never_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        serialize(_graph(), "post", (), {"error": float("nan")})


def test_pieces_equal_protobuf_serialization() -> None:
    """Compared with deterministic protobuf serialization of the whole message."""
    g = GraphBuilder()
    table = g.constant("table", np.arange(6, dtype=np.float32).reshape(2, 3))
    g.op("Add", ["x", table], "add", output="y")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy"]
    groups = post_groups(PostSpec(8, 9, NORM), Recipe())
    data = b"".join(serialize(g.graph("g", values[:1], values[1:]), "post", groups, {"a": 1}))
    model = onnx.ModelProto.FromString(data)
    onnx.checker.check_model(model, full_check=True)
    assert data == model.SerializeToString(deterministic=True)


def test_file_above_the_protobuf_limit_is_refused() -> None:
    half = memoryview(np.zeros(SIZE_LIMIT // 2, np.uint8))
    with pytest.raises(AxzooError, match=r"the post file would have \d{10} bytes, .* at most 2147483647: use a sm"):
        serialize((half, half), "post", (), {})
