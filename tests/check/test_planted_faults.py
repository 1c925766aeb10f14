"""Level 1 finds every planted fault, and refuses no sound build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted_faults import (
    activation,
    at,
    attribute,
    bf16_truncated,
    bypass,
    change_graph,
    change_tensor,
    compiled_for,
    compiled_with,
    copy_file,
    edit,
    exact_gelu,
    exchange_inputs,
    mask_off_by_one_after,
    overflow_from,
    set_tensor,
)

from axzoo.bundle.completion import complete_bundle
from axzoo.bundle.manifest import read_manifest
from axzoo.check.level_1 import Level1, check_files
from axzoo.core.errors import AxzooError
from axzoo.runtime.bundle_folder import open_bundle
from axzoo.weights.recipe import Recipe
from tiny_model import Built, Checkpoint, build, make_checkpoint

IDS = [int(i) for i in np.random.default_rng(3).integers(0, 256, 12)]
S8 = Recipe(prefill_len=8, kv_cache_len=31, last_kv_cache_len=(8, 16))
GPTQ = replace(S8, rounding="gptq")
KINDS: dict[str, tuple[str, Recipe]] = {
    "s8": ("qwen2", S8),
    "s4": ("qwen2", replace(S8, weight_type="s4")),
    "s4 mse": ("qwen2", replace(S8, weight_type="s4", scale_rule="mse", weight_group_size=32)),
    "bf16": ("qwen2", replace(S8, weight_type="bf16", post_weight_type="bf16")),
    "fp32": ("qwen2", replace(S8, weight_type="fp32", post_weight_type="fp32")),
    "fp16": ("qwen2", replace(S8, weight_type="fp16", hidden_state_type="fp16", post_weight_type="fp8_e4m3")),
    "s8 gptq": ("qwen2", GPTQ),
    "s4 mse gptq": ("qwen2", replace(GPTQ, weight_type="s4", scale_rule="mse", weight_group_size=32)),
    "qwen3": ("qwen3", S8),
    "phi": ("phi", S8),
    "topk": ("qwen2", replace(S8, post_topk=4, ret_postnorm=True)),
    "decode": ("qwen2", Recipe(prefill_len=0, kv_cache_len=31)),
}
SHAPES: dict[str, dict[str, Any]] = {"qwen3": {"head_dim": 8}, "phi": {"num_key_value_heads": 4}}
WIDE = {"hidden_size": 64, "intermediate_size": 96}
"""Rows that groups of 32 divide."""


class Shop:
    """Builds each kind once, and a second, slightly different checkpoint of each family."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._text = root / "text.txt"
        self._text.write_text("".join(np.random.default_rng(0).choice(list("abcdefgh "), 2000)))
        self._checkpoints: dict[str, Checkpoint] = {}
        self._built: dict[str, Built] = {}

    def checkpoint(self, model_type: str, name: str = "") -> Checkpoint:
        key = model_type + name
        if key not in self._checkpoints:
            shape = {**WIDE, **SHAPES.get(model_type, {})}
            self._checkpoints[key] = make_checkpoint(self._root / f"checkpoint {key}", shape, model_type)
            if change := {"older": _nudge, "massive": _make_massive}.get(name):
                change(self._root / f"checkpoint {key}")
        return self._checkpoints[key]

    def built(self, kind: str, name: str = "") -> Built:
        key = kind + name
        if key not in self._built:
            model_type, recipe = KINDS[kind]
            built = build(self.checkpoint(model_type, name), recipe, self._root / f"built {key}", self._text)
            complete_bundle(built.plan)
            self._built[key] = built
        return self._built[key]


def _nudge(folder: Path) -> None:
    """Changes every matrix by one percent, as a training step does."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    changed = {name: t * (1 + 0.01 * torch.randn(t.shape, generator=generator)) for name, t in tensors.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})


FIRST = 200
"""The token whose activations are massive."""


def _make_massive(folder: Path) -> None:
    """Makes activations as uneven as those of trained models: token FIRST gets values of thousands in layer 0, norms
    have large and small weights, and keys have biases that make attention sharp."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    first = tensors["model.embed_tokens.weight"][FIRST] * 8
    tensors["model.embed_tokens.weight"][FIRST] = first
    early = "model.layers.0.mlp"
    for name in ("gate_proj", "up_proj"):
        tensors[f"{early}.{name}.weight"][0] = first / first.norm()
    tensors[f"{early}.down_proj.weight"][[4, 20, 41], 0] = torch.tensor([60.0, -60.0, 40.0])
    for name, tensor in tensors.items():
        if "layernorm" in name:
            tensor[[3, 30]] *= 10
            tensor[[4, 20, 41]] *= 0.1
        if name.endswith("k_proj.bias"):
            tensor[::5] = 120.0
        if name.endswith("q_proj.bias"):
            tensor[::5] = 4.0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


def check(built: Built, ids: list[int] = IDS) -> Level1:
    return check_files(open_bundle(built.folder), read_manifest(built.folder), built.locks, built.source, ids)


def _other(code: Any) -> int:
    return 7 - int(code)


def _larger(scale: Any) -> Any:
    return scale * 1.01


Fault = Callable[[Built], None]

FAULTS: dict[str, tuple[str, Fault, str]] = {
    # files
    "swapped layers": ("s8", lambda b: copy_file(b.layers[0], b.layers[1]), "layer 1"),
    "a post layer as layer": ("s8", lambda b: copy_file(b.post, b.layers[1]), "layer 1"),
    "a damaged file": ("s8", lambda b: b.layers[1].write_bytes(b"no model"), "layer 1"),
    # weights and scales
    "a scale row off by one per cent": ("s8", change_tensor("up_proj.scale", at(7, lambda x: x * 1.01)), "up_proj"),
    "scales one row off": ("s8", change_tensor("q_proj.scale", lambda x: np.roll(x, 1)), "q_proj"),
    "a wrong sign of a scale": ("s4", change_tensor("q_proj.scale", at(3, lambda x: -x)), "q_proj"),
    "a wrong scale of one group": ("s4 mse", change_tensor("q_proj.scale", at((1, 3), lambda x: x * 1.5)), "q_proj"),
    "a zeroed row": ("s8", change_tensor("o_proj.weight", at((slice(None), 5), 0)), "o_proj.weight"),
    "one wrong code": ("s8", change_tensor("gate_proj.weight", at((3, 5), lambda x: x ^ 2)), "gate_proj"),
    "one wrong int4 code": ("s4", change_tensor("down_proj.weight", at((3, 4), lambda x: 7 - x.astype(int))), "down"),
    "transposed halves of a matrix": ("s8", change_tensor("o_proj.weight", lambda x: np.roll(x, 8, 0)), "o_proj"),
    "exchanged nibbles": ("s4", change_tensor("up_proj.weight", lambda x: x.reshape(-1, 2)[:, ::-1]), "up_proj"),
    "a NaN weight": ("bf16", change_tensor("v_proj.weight", at((2, 2), np.nan)), "v_proj"),
    "a NaN scale": ("s8", change_tensor("v_proj.scale", at(2, np.nan)), "v_proj"),
    "an infinite scale": ("s8", change_tensor("down_proj.scale", at(2, np.inf)), "down_proj"),
    "a norm of another layer": ("s8", change_tensor("mlp_norm.weight", lambda x: x[::-1]), "mlp_norm"),
    "a bias of zeros": ("s8", change_tensor("q_proj.bias", lambda x: 0 * x), "q_proj.bias"),
    "a zeroed row of calibrated codes": ("s8 gptq", change_tensor("o_proj.weight", at((slice(None), 5), 0)), "o_proj"),
    "a calibrated scale off": ("s8 gptq", change_tensor("up_proj.scale", at(7, lambda x: x * 1.001)), "up_proj"),
    "one wrong calibrated code": ("s4 mse gptq", change_tensor("k_proj.weight", at((3, 4), _other)), "k_proj"),
    "a calibrated scale of one group": ("s4 mse gptq", change_tensor("q_proj.scale", at((1, 3), _larger)), "q_proj"),
    # graph
    "a dropped bias": ("s8", bypass("attention/k_proj/Add"), "keys differ"),
    "a dropped residual": ("s8", bypass("mlp/residual/Add"), "output differ"),
    "no rotation of queries": ("s8", bypass("attention/q/RotaryEmbedding"), "output differ"),
    "keys and values exchanged": ("s8", exchange_inputs("k_proj.weight", "v_proj.weight"), "keys differ"),
    "gate and up exchanged": ("s8", exchange_inputs("gate_proj.scale", "up_proj.scale"), "output differ"),
    "another activation": ("s8", change_graph(activation), "output differ"),
    "another kind of gelu": ("phi", change_graph(exact_gelu), "output differ"),
    "interleaved rotation": ("s8", attribute("attention/k/RotaryEmbedding", "interleaved", 1), "keys differ"),
    "wrong rope theta": (
        "s8",
        compiled_with(lambda s: replace(s, rope=replace(s.rope, theta=500000.0))),
        "keys differ",
    ),
    "one wrong row of the rope table": ("s8", change_tensor("rope.cos", at(30, lambda x: -x)), "keys differ"),
    "wrong eps of the first norm": ("s8", attribute("input_norm/RMSNormalization", "epsilon", 1e-6), "differ"),
    "wrong eps of the second norm": ("s8", attribute("mlp_norm/RMSNormalization", "epsilon", 1.2e-5), "output differ"),
    "wrong eps of the key norm": ("qwen3", attribute("k_norm/RMSNormalization", "epsilon", 1e-6), "keys differ"),
    "wrong eps of the query norm": ("qwen3", attribute("q_norm/RMSNormalization", "epsilon", 1e-4), "output differ"),
    "queries and keys exchanged": ("phi", exchange_inputs("q_proj.weight", "k_proj.weight"), "keys differ"),
    "an infinite output": ("s8", overflow_from(5, np.inf), "output of shape group 1 are not finite"),
    "an infinite output of late tokens": ("s8", overflow_from(17, np.inf), "output of shape group 3 are not finite"),
    "a NaN output": ("bf16", overflow_from(5, np.nan), "output of shape group 1 are not finite"),
    "half the tokens lose their MLP": ("s8", overflow_from(6, 0), "output differ"),
    "one group's mask off by one": ("s8", mask_off_by_one_after(16), "shape group"),
    "the decode mask off by one": ("s8", mask_off_by_one_after(31), "shape group 0"),
    "the decode mask of a decode-only build": ("decode", mask_off_by_one_after(31), "shape group 0"),
    "a sliding window": ("s8", compiled_with(lambda s: replace(s, sliding_window=20)), "output differ"),
    "a missing group": ("s8", compiled_for(replace(S8, last_kv_cache_len=(8,))), "shape groups"),
    "another cache length": ("s8", compiled_for(replace(S8, kv_cache_len=30)), "shape groups"),
    "another hidden state type": ("s8", compiled_for(replace(S8, hidden_state_type="fp16")), "shape groups"),
    "another weight type": ("s8", compiled_for(replace(S8, weight_type="bf16")), "stored as bf16"),
}


def test_there_are_at_least_twenty_faults() -> None:
    assert len(FAULTS) >= 20


@pytest.mark.parametrize("name", FAULTS)
def test_level_1_finds_a_planted_fault(shop: Shop, tmp_path: Path, name: str) -> None:
    kind, plant, words = FAULTS[name]
    built = shop.built(kind).moved(tmp_path / "faulty")
    plant(built)
    found = check(built)
    assert found.faults, "the fault was not found"
    assert any(words in fault for fault in found.faults), found.faults
    assert {check.layer for check in found.layers if check.faults} == {1}  # only the faulty file


@pytest.mark.parametrize("name", [name for name, (kind, _, _) in FAULTS.items() if kind == "s8"])
def test_massive_activations_hide_no_planted_fault(shop: Shop, tmp_path: Path, name: str) -> None:
    _, plant, words = FAULTS[name]
    built = shop.built("s8", "massive").moved(tmp_path / "faulty")
    plant(built)
    faults = check(built, [FIRST, *IDS]).faults
    assert any(words in fault for fault in faults), faults


def test_truncated_bf16_weights_are_found(shop: Shop, tmp_path: Path) -> None:
    built = shop.built("bf16").moved(tmp_path / "faulty")
    exact = shop.checkpoint("qwen2").model.model.layers[1].self_attn.q_proj.weight.detach().numpy()
    edit(built.layers[1], lambda model: set_tensor(model, "q_proj.weight", lambda _: bf16_truncated(exact).T))
    (fault,) = check(built).faults
    assert "layer 1: q_proj.weight differs from the checkpoint rounded to bf16" in fault


@pytest.mark.parametrize("kind", ["s8", "s4", "s4 mse", "bf16", "fp16", "s8 gptq", "s4 mse gptq"])
def test_a_layer_of_an_older_checkpoint_is_found(shop: Shop, tmp_path: Path, kind: str) -> None:
    """All weights differ by one per cent, less than s4 rounds."""
    built = shop.built(kind).moved(tmp_path / "faulty")
    copy_file(shop.built(kind, "older").layers[1], built.layers[1])
    found = check(built)
    assert {check.layer for check in found.layers if check.faults} == {1}
    assert len(found.faults) >= 7  # every matrix


POST_FAULTS: dict[str, tuple[str, Fault]] = {
    "a wrong norm": ("s8", lambda b: edit(b.post, lambda m: set_tensor(m, "norm.weight", lambda x: x * 1.001))),
    "wrong scales": ("fp16", lambda b: edit(b.post, lambda m: set_tensor(m, "lm_head.scale", lambda x: np.roll(x, 1)))),
    "one wrong code": ("s8", lambda b: edit(b.post, lambda m: set_tensor(m, "lm_head.weight", at((9, 200), 99)))),
    "a wrong eps": ("s8", lambda b: edit(b.post, lambda m: _set_eps(m))),
    "a wrong top k": ("topk", lambda b: edit(b.post, lambda m: _smallest(m))),
}


def _set_eps(model: Any) -> None:
    (found,) = (
        a for n in model.graph.node if n.op_type == "RMSNormalization" for a in n.attribute if a.name == "epsilon"
    )
    found.f = 1e-6


def _smallest(model: Any) -> None:
    """The least probable tokens instead of the most probable ones."""
    from onnx import helper

    (found,) = (node for node in model.graph.node if node.op_type == "TopK")
    found.attribute.append(helper.make_attribute("largest", 0))


@pytest.mark.parametrize("name", POST_FAULTS)
def test_level_1_finds_a_fault_of_the_post_layer(shop: Shop, tmp_path: Path, name: str) -> None:
    kind, plant = POST_FAULTS[name]
    built = shop.built(kind).moved(tmp_path / "faulty")
    plant(built)
    found = check(built)
    assert found.faults
    assert all(fault.startswith(built.post.name) for fault in found.faults)


def test_the_post_layer_of_another_model_is_found(shop: Shop, tmp_path: Path) -> None:
    built = shop.built("s8").moved(tmp_path / "faulty")
    copy_file(shop.built("s8", "older").post, built.post)
    faults = check(built).faults
    assert faults
    assert all(fault.startswith(f"{built.post.name}: ") for fault in faults)


def test_one_wrong_row_of_the_embedding_is_found(shop: Shop, tmp_path: Path) -> None:
    built = shop.built("s8").moved(tmp_path / "faulty")
    table = np.fromfile(built.embedding, np.uint16).reshape(262, -1)
    table[77, 5] ^= 1
    built.embedding.unlink()
    built.embedding.write_bytes(table.tobytes())
    (fault,) = check(built).faults
    assert fault == f"{built.embedding.name}: 1 of 262 rows differ from the checkpoint's, the first is 77"


def test_a_part_that_is_not_read_is_a_fault(shop: Shop, tmp_path: Path) -> None:
    built = shop.built("s8").moved(tmp_path / "faulty")
    config = built.folder / "config.json"
    text = config.read_text()
    config.unlink()
    config.write_text(text.replace('"axmodel_num": 2', '"axmodel_num": 1'))
    assert config.read_text() != text
    faults = check(built).faults
    assert "1 layers were checked, but the model has 2" in faults
    assert f"{built.layers[1].name} is a part of the bundle, but was not read" in faults


PROMPTS = [
    [int(i) for i in np.random.default_rng(seed).integers(0, 256, n)] for seed, n in enumerate((1, 2, 9, 20, 31))
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_build_is_not_refused(shop: Shop, kind: str) -> None:
    built = shop.built(kind)
    for ids in PROMPTS:
        found = check(built, ids)
        assert found.faults == []
        assert len(found.layers) == 2
        groups = {group for layer in found.layers for group in layer.groups}
        assert groups == set(range(1 if kind == "decode" else 4))


@pytest.mark.parametrize("kind", ["s8", "s4 mse", "s8 gptq", "bf16", "fp32"])
def test_a_sound_build_with_massive_activations_is_not_refused(shop: Shop, kind: str) -> None:
    for ids in PROMPTS:
        found = check(shop.built(kind, "massive"), [FIRST, *ids[:-1]])
        assert found.faults == []
        assert [layer.prefill.massive_tokens for layer in found.layers if layer.prefill][1:] == [(0,)] * (len(ids) > 1)


def test_a_prompt_that_does_not_fit_is_an_error(shop: Shop) -> None:
    with pytest.raises(AxzooError, match="the prompt has 32 tokens"):
        check(shop.built("s8"), [1] * 32)
