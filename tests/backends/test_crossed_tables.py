"""The reader, the tests' own writer and the simulator of the compiler, which share no code, agree about tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from table_writer import Matrix, Shape, layer_table, post_table, random_layer

import pulsar2_simulator.container as simulated_container
import pulsar2_simulator.table as simulated
from axzoo.backends.pulsar2.vendor_file import read_vendor_file
from axzoo.backends.pulsar2.weight_table import read_table

NAMES = {
    "input_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    **{f"{name}_{what}": f"self_attn.{name}_{what}" for name in "qkv" for what in ("proj", "norm")},
    "o_proj": "self_attn.o_proj",
    **{f"{name}_proj": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
"""The simulator's names of tensors, by role."""

SHAPES = {
    "llama, s8": Shape(64, 4, 2, 32, 608, kv=20, prefill=4),
    "llama, s4, blocks of 64 rows": Shape(576, 3, 1, 64, 96, kind="s4", qkv_rows=64, kv=255),
    "llama, s4": Shape(1024, 4, 1, 32, 64, kind="s4"),
    "llama, bf16": Shape(64, 2, 2, 32, 96, kind="bf16"),
    "qwen3, s8": Shape(64, 4, 2, 64, 1536, rule="B", qk_norm=True, kv=33),
    "qwen3, s4": Shape(1024, 2, 1, 128, 64, kind="s4", rule="B", qk_norm=True),
    "qwen3, s4, blocks of 64 rows": Shape(64, 4, 2, 64, 96, kind="s4", rule="B", qkv_rows=64, qk_norm=True),
}


def simulated_table(name: str, shape: Shape, layer: Mapping[str, Matrix]) -> bytes:
    config: dict[str, Any] = {
        "model_type": name.partition(",")[0],
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "head_dim": shape.head_dim,
    }
    tensors = {NAMES[role.removesuffix(".weight")] + ".weight": tensor for role, tensor in layer.items()}
    return simulated.layer_table(config, tensors, shape.kind, shape.kv, shape.prefill, 1)


@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_a_layer(name: str, units: bool) -> None:
    """The two writers give the same bytes, and the reader finds everything in them."""
    shape = SHAPES[name]
    layer = random_layer(shape, np.random.default_rng(3))
    if units:
        layer |= {role: np.ones_like(layer[role]) for role in shape.vectors}
    table = simulated_table(name, shape, layer)
    assert table == bytes(layer_table(shape, layer).content)
    reading = read_table(memoryview(table), {role: x.shape for role, x in layer.items()}, lambda role: [layer[role]])
    assert reading.all_faults == reading.unknown == []


def test_a_post_layer() -> None:
    random = np.random.default_rng(0)
    norm, head = random.standard_normal(64).astype(np.float32), random.standard_normal((160, 64)).astype(np.float32)
    head[64:96] = head[:32]
    table = simulated.post_table(norm, head, "s8")
    assert table == bytes(post_table(norm, head).content)
    layer = {"norm.weight": norm, "lm_head.weight": head}
    reading = read_table(memoryview(table), {role: x.shape for role, x in layer.items()}, lambda role: [layer[role]])
    assert reading.all_faults == []


def test_the_simulated_container(tmp_path: Path) -> None:
    group = [("input", "bf16", (1, 1, 8))], [("output", "bf16", (1, 1, 8))]
    for groups in ([group], [group] * 3):
        content = simulated_container.container("llama_p8_l0_together", "7.0", groups, b"table" * 9)
        (tmp_path / "x.axmodel").write_bytes(content)
        found = read_vendor_file(tmp_path / "x.axmodel")
        assert (bytes(found.table), len(found.groups), found.version) == (b"table" * 9, len(groups), "7.0")
        assert {found.shape("output", index) for index in range(len(groups))} == {(1, 1, 8)}
