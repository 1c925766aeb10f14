"""Locking validates the checkpoint and reports every problem in one line before anything is compiled."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from axzoo.checkpoint import open_checkpoint
from axzoo.core.errors import AxzooError
from axzoo.parts.lock import Lock, make_lock, write_lock
from axzoo.parts.lock_index import read_index
from axzoo.parts.part import read_part, read_parts, verified_blocks
from tiny_model import LAYERS, Checkpoint, make_checkpoint

Tensors = dict[str, torch.Tensor]
UP = "model.layers.1.mlp.up_proj.weight"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A copy of the small llama that tests can damage."""
    return Path(shutil.copytree(checkpoint.folder, tmp_path / "checkpoint"))


def _lock(folder: Path, **arguments: Any) -> Lock:
    usual: dict[str, Any] = {"model_type": "llama", "num_hidden_layers": LAYERS}
    return make_lock(folder, **usual | arguments)


def _refused(folder: Path, message: str, **arguments: Any) -> str:
    with pytest.raises(AxzooError, match=message) as error:
        _lock(folder, **arguments)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def _change_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def _put(folder: Path, name: str, value: torch.Tensor) -> None:
    _change_tensors(folder, lambda tensors: tensors.update({name: value}))


def _change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_parts_of_a_model(checkpoint: Checkpoint) -> None:
    lock = _lock(checkpoint.folder)
    assert (lock.spec.model_type, lock.spec.num_hidden_layers) == ("llama", LAYERS)
    assert [part.id.name for part in lock.parts] == ["layer_0", "layer_1", "post", "embed"]
    names = [tensor.name for part in lock.parts for tensor in part.tensors.values()]
    stored = load_file(checkpoint.folder / "model.safetensors")
    assert sorted(names) == sorted(stored)
    first, second = lock.of_kind("layer")
    for tensor in second.tensors.values():
        assert tensor.shape == tuple(stored[tensor.name].shape)
    assert first.tensors["q_proj.weight"].blake3 != second.tensors["q_proj.weight"].blake3


def test_round_trip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    lock = _lock(checkpoint.folder)
    write_lock(lock, tmp_path, checkpoint.folder, {"path": "there"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "embed.json", "index.json", "layer_0.json", "layer_1.json", "post.json",
    ]  # fmt: skip
    assert read_parts(tmp_path, lock.spec) == list(lock.parts)
    index = read_index(tmp_path)
    assert index.source == {"path": "there"}
    assert index.spec == lock.spec
    assert sorted(index.tokenizer_files) == [
        "chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_only_changed_parts_are_rewritten(folder: Path, tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    parts = ["embed.json", "layer_0.json", "layer_1.json", "post.json"]

    def write() -> dict[str, tuple[int, int]]:
        write_lock(_lock(folder), locks, folder, {})
        stats = {name: (locks / name).stat() for name in parts}
        return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}

    def changed(before: dict[str, tuple[int, int]]) -> list[str]:
        after = write()
        return [name for name in parts if after[name] != before[name]]

    first = write()
    for name in parts:
        os.utime(locks / name, (1000, 1000))
    first = {name: (inode, 10**12) for name, (inode, _) in first.items()}
    assert changed(first) == []
    _change_tensors(folder, lambda tensors: tensors[UP].add_(1))
    assert changed(first) == ["layer_1.json"]
    _change_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    assert changed(first) == ["layer_0.json", "layer_1.json"]
    (locks / "post.json").write_text("{")
    assert changed(first) == ["layer_0.json", "layer_1.json", "post.json"]


def test_a_missing_tensor(folder: Path) -> None:
    _change_tensors(folder, lambda tensors: tensors.pop(UP))
    _refused(folder, f"the checkpoint is missing tensor {UP}: check that")


def test_a_renamed_tensor(folder: Path) -> None:
    _change_tensors(folder, lambda tensors: tensors.update({"model.layers.1.mlp.up.weight": tensors.pop(UP)}))
    _refused(folder, f"is missing tensor {UP} and has unexpected tensor model.layers.1.mlp.up.weight: check that")


def test_unexpected_tensors(folder: Path) -> None:
    extra = {f"model.layers.{i}.mlp.up_proj.weight": torch.zeros(2) for i in range(2, 9)}
    _change_tensors(folder, lambda tensors: tensors.update(extra))
    _refused(folder, r"has unexpected tensors (model\.layers\.\d\S+, ){4}model\.\S+ and 2 more: check")


def test_unexpected_bias(folder: Path) -> None:
    bias = torch.zeros(32)
    bias[-1] = 1e-4
    _change_tensors(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": bias}))
    _refused(folder, "has unexpected tensor model.layers.0.self_attn.q_proj.bias: check that config.json")


@pytest.mark.parametrize("frequencies", [torch.zeros(4), torch.zeros(4, dtype=torch.int64), torch.tensor(1.0)])
def test_derived_tensors_are_ignored(folder: Path, frequencies: torch.Tensor) -> None:
    expected = _lock(folder)
    names = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(2)]
    _change_tensors(folder, lambda tensors: tensors.update({name: frequencies.clone() for name in names}))
    assert _lock(folder) == expected


@pytest.mark.parametrize(
    "shape, message",
    [((48, 31), r"\[48, 31\]"), ((32, 48), r"\[32, 48\]"), ((1536,), r"\[1536\]"), ((48, 32, 1), r"\[48, 32, 1\]")],
)
def test_a_wrong_shape(folder: Path, shape: tuple[int, ...], message: str) -> None:
    _change_tensors(folder, lambda tensors: tensors.update({UP: torch.ones(shape)}))
    _refused(folder, rf"tensor {UP} has shape {message}, but .*/config\.json requires \[48, 32\]")


def test_a_scalar_or_empty_weight(folder: Path) -> None:
    for value in (torch.tensor(1.0), torch.zeros(0, 32)):
        _put(folder, UP, value)
        _refused(folder, f"tensor {UP} has shape")


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn])
def test_unsupported_dtype(folder: Path, dtype: torch.dtype) -> None:
    _change_tensors(folder, lambda tensors: tensors.update({UP: tensors[UP].to(dtype)}))
    with pytest.raises(
        AxzooError, match=rf"model\.safetensors: tensor {UP} has dtype \S+, but must have one of F32, F16, BF16"
    ):
        _lock(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [UP, EMBED, HEAD, "model.norm.weight"])
def test_nan_and_infinite_weights(folder: Path, name: str, value: float) -> None:
    _change_tensors(folder, lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    _refused(folder, rf"tensor {name} contains NaN or infinity: the checkpoint is damaged")


def test_a_truncated_checkpoint(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    _refused(folder, "is damaged or incomplete")


def test_tied_head_that_is_also_stored(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tied", {"tie_word_embeddings": True}).folder
    alone = _lock(folder)
    assert alone.of_kind("post")[0].tensors["lm_head.weight"].name == EMBED
    _change_tensors(folder, lambda tensors: tensors.update({HEAD: tensors[EMBED].clone()}))
    assert _lock(folder) == alone
    _change_tensors(folder, lambda tensors: tensors[HEAD][0, 0].add_(1))
    _refused(
        folder, "sets tie_word_embeddings, but lm_head.weight differs from model.embed_tokens.weight: if the model"
    )
    for other in (torch.zeros(3, 32), torch.tensor(1.0)):
        _put(folder, HEAD, other)
        _refused(folder, r"tensor lm_head.weight has shape \[.*\], but .* requires \[262, 32\]")


def test_untied_head_is_required(folder: Path) -> None:
    _change_tensors(folder, lambda tensors: tensors.pop(HEAD))
    _refused(folder, "is missing tensor lm_head.weight")


def test_matrix_must_match_config_json(folder: Path) -> None:
    _refused(folder, "has 2 layers, but the matrix says num_hidden_layers: 3", num_hidden_layers=3)
    _change_config(folder, model_type="mistral")
    _refused_type(
        folder,
        "llama",
        r"config\.json: model_type 'mistral' is not supported; supported are: chatglm, llama, .*\. "
        r"The config has model_type 'mistral', architectures \['LlamaForCausalLM'\]\. If the model",
    )
    for model_type in (None, 7, ["llama"], "../llama", "config_view", ""):
        _change_config(folder, model_type=model_type)
        _refused_type(folder, "llama", r"config\.json: model_type .* is not supported; supported are: .*llama")
    _change_config(folder, model_type="llama")
    _refused_type(folder, "gemma", "has model_type 'llama', but the matrix says 'gemma'")


def _refused_type(folder: Path, model_type: str, message: str) -> None:
    _refused(folder, message, model_type=model_type)


def test_unsupported_config_names_the_unknown_value(folder: Path) -> None:
    auto_map = {"AutoModel": "modeling_x.X"}
    _change_config(folder, model_type="llava", auto_map=auto_map, text_config={"model_type": "llama"}, vision_config={})
    _refused(
        folder,
        r"The config has model_type 'llava', architectures \['LlamaForCausalLM'\], "
        r"auto_map \{'AutoModel': 'modeling_x.X'\}, text_config with model_type 'llama'\. If the model",
    )
    _change_config(folder, model_type=None, architectures=["x" * 9999])
    assert len(_refused(folder, "The config has model_type None, architectures")) < 1000


def test_zero_bias_of_autogptq_is_ignored(folder: Path) -> None:
    expected = _lock(folder)
    name, zeros = "model.layers.0.self_attn.q_proj", torch.zeros(32)
    _change_tensors(folder, lambda tensors: tensors.update({f"{name}.bias": zeros}))
    assert _lock(folder) == expected
    for other in (f"{name}.zeros", "model.layers.9.self_attn.q_proj.bias"):
        _change_tensors(folder, lambda tensors, other=other: tensors.update({other: zeros}))
        _refused(folder, f"has unexpected tensor {other}: check that config.json")
        _change_tensors(folder, lambda tensors, other=other: tensors.pop(other))


def test_more_layers_than_tensors(folder: Path) -> None:
    _change_config(folder, num_hidden_layers=3)
    _refused(folder, r"is missing tensors (model\.layers\.2\.\S+, ){4}.* and 4 more", num_hidden_layers=3)


def test_fewer_layers_than_tensors(folder: Path) -> None:
    _change_config(folder, num_hidden_layers=1)
    _refused(folder, r"has unexpected tensors model\.layers\.1\.\S+", num_hidden_layers=1)


def test_unknown_config_key_is_refused_unless_ignored(folder: Path) -> None:
    expected = _lock(folder)
    _change_config(folder, logit_scale=2.0, sliding_window=7, attn_logit_softcapping=None)
    _refused(folder, "has keys axzoo does not know: logit_scale, sliding_window.*ignore_config_keys")
    _refused(folder, "does not know: logit_scale", ignore_config_keys=["sliding_window"])
    ignored = ["sliding_window", "logit_scale", "never_there"]
    assert _lock(folder, ignore_config_keys=ignored) == replace(expected, ignored={"config_keys": sorted(ignored)})


def test_a_quantized_checkpoint_is_refused(folder: Path) -> None:
    _change_config(folder, quantization_config={"quant_method": "unheard_of"})
    _refused(folder, "quantization|unheard_of")


NO_CONFIG = {"": "not valid JSON", "{": "not valid JSON", "[]": "is not a JSON object", "3": "is not a JSON object"}


@pytest.mark.parametrize("text, message", [*NO_CONFIG.items(), ('"llama"', "is not a JSON object")])
def test_config_that_is_not_an_object(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    _refused(folder, rf"config\.json {message}|config\.json is {message}")


def test_a_missing_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    _refused(folder, r"config\.json is missing")


SIZES = [
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "num_hidden_layers", "max_position_embeddings",
]  # fmt: skip


@pytest.mark.parametrize("value", [0, -1, 1 << 31, 10**400, 1.5, 32.0, True, "32", [32], {}])
@pytest.mark.parametrize("key", SIZES)
def test_invalid_sizes(folder: Path, key: str, value: Any) -> None:
    _change_config(folder, **{key: value})
    _refused(folder, f"{key} is .*, but must be a positive integer")


@pytest.mark.parametrize("key", SIZES)
def test_huge_size_is_refused_without_using_memory(folder: Path, key: str) -> None:
    _change_config(folder, **{key: 2**31 - 1})
    if key == "max_position_embeddings":
        assert _lock(folder).spec.layer.max_position_embeddings == 2**31 - 1
    else:
        with pytest.raises(AxzooError) as error:
            _lock(folder)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [0, -1e-5, 10**400, float("nan"), float("inf"), True, "1e-5", []])
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
def test_invalid_numbers(folder: Path, key: str, value: Any) -> None:
    if key == "rope_theta":
        _change_config(folder, rope_parameters={"rope_type": "default", "rope_theta": value})
    else:
        _change_config(folder, **{key: value})
    _refused(folder, f"{key} is .*, but must be a positive number")


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias", "tie_word_embeddings"])
@pytest.mark.parametrize("value", [1, 0, "true", [], 0.0])
def test_invalid_flags(folder: Path, key: str, value: Any) -> None:
    _change_config(folder, **{key: value})
    _refused(folder, f"{key} is .*, but must be true or false")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("hidden_act", "gelu", "hidden_act is 'gelu', but must be 'silu'"),
        ("hidden_act", ["silu"], r"hidden_act is \['silu'\], but must be 'silu'"),
        ("rope_interleaved", True, "does not know: rope_interleaved"),
    ],
)
def test_unsupported_variant(folder: Path, key: str, value: Any, message: str) -> None:
    _change_config(folder, **{key: value})
    _refused(folder, message)


def test_kv_heads_that_do_not_divide_the_heads(folder: Path) -> None:
    _change_config(folder, num_key_value_heads=3)
    _refused(folder, "num_attention_heads is 4, but must be a multiple of num_key_value_heads, 3")


def test_missing_config_key(folder: Path) -> None:
    _change_config(folder, hidden_size=None)
    _refused(folder, "config.json has no hidden_size, which this model_type needs")


def test_verified_blocks_equal_the_locked_tensor(folder: Path) -> None:
    tensor = _lock(folder).of_kind("layer")[1].tensors["up_proj.weight"]
    blocks = list(verified_blocks(open_checkpoint(folder), tensor))
    np.testing.assert_array_equal(np.concatenate(blocks), load_file(folder / "model.safetensors")[UP].numpy())


def test_checkpoint_changed_after_locking_is_detected(folder: Path) -> None:
    tensor = _lock(folder).of_kind("layer")[1].tensors["up_proj.weight"]
    _change_tensors(folder, lambda tensors: tensors[UP][47, 31].add_(1e-3))
    with pytest.raises(AxzooError, match=f"tensor {UP} changed since locking: lock the checkpoint again"):
        list(verified_blocks(open_checkpoint(folder), tensor))
    for change in (
        lambda tensors: tensors.update({UP: tensors[UP].bfloat16()}),
        lambda tensors: tensors.update({UP: tensors[UP].double()}),
        lambda tensors: tensors.update({UP: tensors[UP].float().T.contiguous()}),
        lambda tensors: tensors.pop(UP),
    ):
        _change_tensors(folder, change)
        with pytest.raises(AxzooError, match=r"locking: lock the checkpoint again|has dtype F64"):
            list(verified_blocks(open_checkpoint(folder), tensor))


def test_swapped_tensor_names(folder: Path) -> None:
    """Store keys contain digests but no names. A lock entry with the wrong tensor name is still refused."""
    lock = _lock(folder)
    q, k = (lock.of_kind("layer")[0].tensors[role] for role in ("gate_proj.weight", "up_proj.weight"))
    with pytest.raises(AxzooError, match="changed since locking"):
        list(verified_blocks(open_checkpoint(folder), replace(q, name=k.name)))


@pytest.mark.parametrize(
    "text", ["{}", "[]", "3", '{"tensors": []}', '{"tensors": {"a": {}}}', '{"tensors": {"a": 1}, "spec": {}}',
             '{"tensors": {"a": {"name": "x", "start": 0, "shape": 3, "sha256": ""}}, "spec": {}}', '{"tensors": {}}',
             '{"tensors": {"a": {"name": "x", "shape": [3], "sha256": ""}}, "spec": {}}'],
)  # fmt: skip
def test_a_damaged_lock_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "layer_0.json"
    path.write_text(text)
    with pytest.raises(
        AxzooError, match=r"layer_0\.json (is damaged|has format 1, which an older axzoo wrote): remove"
    ):
        read_part(path)
    content = json.loads(text)
    if isinstance(content, dict):
        path.write_text(json.dumps({"format": 2, "kind": "layer", "index": 0, **content}))
        with pytest.raises(AxzooError, match=r"layer_0\.json is damaged: remove .* and build again"):
            read_part(path)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (1, "has format 1, which an older axzoo wrote: remove"),
        (3, "has format 3, and this axzoo reads formats up to 2: it was written by a newer version"),
        (0, "is damaged"),
        (True, "is damaged"),
        ("2", "is damaged"),
    ],
)
def test_a_lock_of_another_version(folder: Path, tmp_path: Path, number: Any, message: str) -> None:
    write_lock(_lock(folder), tmp_path / "locks", folder, {})
    for name in ("layer_0.json", "index.json"):
        path = tmp_path / "locks" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": number}))
    with pytest.raises(AxzooError, match=rf"layer_0\.json {message}"):
        read_part(tmp_path / "locks/layer_0.json")
    with pytest.raises(AxzooError, match=rf"index\.json {message}"):
        read_index(tmp_path / "locks")


ROPE: dict[str, Any] = {"rope_theta": 10000.0}


@pytest.mark.parametrize(
    "rope, message",
    [
        ({"rope_type": "proportional"}, "rope_type 'proportional' is not supported; supported are: default, "),
        ({"rope_type": "linear"}, r"rope_type 'linear' takes the parameters \['factor'\], but the config has \[\]"),
        ({"rope_type": "linear", "factor": -2}, "rope parameter factor is -2, but must be a positive number"),
        (
            {"rope_type": "linear", "factor": 1e-300},
            "gives frequencies that are not positive and finite: the config is wrong",
        ),
        ({"rope_type": "longrope", "short_factor": [1], "long_factor": [1] * 4}, "short_factor must be a list of 4"),
    ],
)
def test_invalid_rope_names_config_json(folder: Path, rope: dict[str, Any], message: str) -> None:
    _change_config(folder, rope_parameters=ROPE | rope)
    text = _refused(folder, message)
    assert text.startswith(f"{folder / 'config.json'}: ")


@pytest.fixture
def fused(tmp_path: Path) -> Path:
    """A phi3 checkpoint, which stores q, k and v in one tensor, and gate and up in another."""
    return make_checkpoint(tmp_path / "fused", model_type="phi3").folder


def _digests(folder: Path, layer: int = 0) -> dict[str, str]:
    parts = _lock(folder, model_type="phi3").of_kind("layer")[layer]
    return {role: tensor.blake3 for role, tensor in parts.tensors.items()}


@pytest.mark.parametrize(
    "name, row, role",
    [
        ("self_attn.qkv_proj", 0, "q_proj"),
        ("self_attn.qkv_proj", 31, "q_proj"),
        ("self_attn.qkv_proj", 32, "k_proj"),
        ("self_attn.qkv_proj", 47, "k_proj"),
        ("self_attn.qkv_proj", 48, "v_proj"),
        ("self_attn.qkv_proj", 63, "v_proj"),
        ("mlp.gate_up_proj", 47, "gate_proj"),
        ("mlp.gate_up_proj", 48, "up_proj"),
    ],
)
def test_changed_row_of_a_fused_tensor_affects_only_its_role(fused: Path, name: str, row: int, role: str) -> None:
    before = _digests(fused), _digests(fused, 1)
    _change_tensors(fused, lambda tensors: tensors[f"model.layers.0.{name}.weight"][row, 0].add_(1))
    after = _digests(fused)
    assert [other for other in after if after[other] != before[0][other]] == [f"{role}.weight"]
    assert _digests(fused, 1) == before[1]


def test_fused_rows_lock_like_separate_tensors(fused: Path, folder: Path, tmp_path: Path) -> None:
    stored, separate = load_file(fused / "model.safetensors"), load_file(folder / "model.safetensors")
    for layer in range(LAYERS):
        own = f"model.layers.{layer}"
        for name, roles in {"self_attn.qkv_proj": ["q", "k", "v"], "mlp.gate_up_proj": ["gate", "up"]}.items():
            prefix = name.split(".")[0]
            names = [f"{own}.{prefix}.{role}_proj.weight" for role in roles]
            rows = stored[f"{own}.{name}.weight"].split([len(separate[other]) for other in names])
            separate |= {other: part.clone() for other, part in zip(names, rows, strict=True)}
    save_file(separate, folder / "model.safetensors")
    plain = _lock(folder)
    for ours, theirs in zip(_lock(fused, model_type="phi3").of_kind("layer"), plain.of_kind("layer"), strict=True):
        for role in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            found, expected = ours.tensors[f"{role}.weight"], theirs.tensors[f"{role}.weight"]
            assert (found.shape, found.blake3) == (expected.shape, expected.blake3)
    write_lock(_lock(fused, model_type="phi3"), tmp_path / "locks", fused, {})
    tensor = read_part(tmp_path / "locks" / "layer_0.json").tensors["v_proj.weight"]
    assert (tensor.rows, tensor.shape) == ((48, 64), (16, 32))
    blocks = list(verified_blocks(open_checkpoint(fused), tensor))
    np.testing.assert_array_equal(np.concatenate(blocks), stored["model.layers.0.self_attn.qkv_proj.weight"][48:64])


def test_fused_tensor_with_fewer_rows_after_locking(fused: Path) -> None:
    tensor = _lock(fused, model_type="phi3").of_kind("layer")[0].tensors["v_proj.weight"]
    _put(fused, tensor.name, torch.zeros(63, 32))
    with pytest.raises(
        AxzooError,
        match=f"tensor {tensor.name} is missing or its shape changed since locking: lock the checkpoint again",
    ):
        list(verified_blocks(open_checkpoint(fused), tensor))


def _model_config(tmp_path: Path, **values: Any) -> Path:
    path = tmp_path / "model_config.json"
    path.write_text(json.dumps(values))
    return path


VENDOR: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embedings": 128,
    "model_name": "tiny",
    "model_type": "llama",
    "norm_eps": 1e-5,
    "norm_type": "rms_norm",
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "rope_partial_factor": 1.0,
    "rope_theta_base": 10000.0,
    "vocab_size": 262,
}
"""The config of the small llama with ax-llm-build's keys."""


def test_a_model_config_overrides_config_json(folder: Path, tmp_path: Path) -> None:
    expected = _lock(folder)
    path = _model_config(tmp_path, max_position_embedings=64, rope_theta_base=5e5)
    found = _lock(folder, model_config=path)
    layer = expected.spec.layer
    changed = replace(layer, max_position_embeddings=64, rope=replace(layer.rope, theta=5e5))
    assert found.spec == replace(expected.spec, layer=changed)
    assert found.of_kind("post") == expected.of_kind("post")
    assert [part.tensors for part in found.parts] == [part.tensors for part in expected.parts]
    assert _lock(folder, model_config=_model_config(tmp_path)) == expected


def test_model_config_replaces_a_missing_config_json(folder: Path, tmp_path: Path) -> None:
    expected = _lock(folder)
    (folder / "config.json").unlink()
    assert _lock(folder, model_config=_model_config(tmp_path, **VENDOR)) == expected
    write_lock(expected, tmp_path / "locks", folder, {})
    assert "config.json" not in read_index(tmp_path / "locks").tokenizer_files


def test_model_config_alone_must_be_complete(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").unlink()
    few = {key: value for key, value in VENDOR.items() if key != "intermediate_size"}
    _refused(folder, "has no intermediate_size", model_config=_model_config(tmp_path, **few))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"num_hidden_layers": 3}, "has 3 layers, but the matrix says num_hidden_layers: 2"),
        ({"model_type": "qwen2"}, "has model_type 'qwen2', but the matrix says 'llama'"),
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported"),
        ({"hidden_size": 64}, r"requires \["),
        ({"vocab_size": 263}, r"has shape \[262, 32\], but .* requires \[263, 32\]"),
        ({"norm_type": "layer_norm"}, "norm_type is 'layer_norm', but is always 'rms_norm' in llama"),
        ({"rope_theta_base": -1}, "rope_theta is -1, but must be a positive number"),
        ({"rope_theta": 1.0, "rope_theta_base": 1.0}, "sets the same value twice"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope parameter factor is '2'"),
        ({"num_hiden_layers": 2}, "unknown key 'num_hiden_layers': did you mean 'num_hidden_layers'?"),
    ],
)
def test_contradictory_model_config(folder: Path, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    path = _model_config(tmp_path, **values)
    with pytest.raises(AxzooError, match=message) as error:
        _lock(folder, model_config=path)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value) or str(path) in str(error.value)


@pytest.mark.parametrize("text, message", [*NO_CONFIG.items(), (None, "is missing")])
def test_model_config_that_is_not_valid(folder: Path, tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "model_config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(AxzooError, match=rf"model_config\.json (is )?{message}") as error:
        _lock(folder, model_config=path)
    assert str(path) in str(error.value)


def test_damaged_config_json_is_refused_with_a_model_config(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text("{")
    _refused(folder, "not valid JSON", model_config=_model_config(tmp_path, **VENDOR))
