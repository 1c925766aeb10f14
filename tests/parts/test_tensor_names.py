"""Tensors under other names and tensors that add nothing are understood; the others are refused with their cause."""

from __future__ import annotations

import json
import shlex
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
from axzoo.cli import main
from axzoo.core.errors import AxzooError
from axzoo.fetch import fetch
from axzoo.fetch.sources import FolderSource
from axzoo.model.families import VISION_MODEL_TYPES, load_family, supported_model_types
from axzoo.model.reading import read_spec
from axzoo.model.spec import DecoderSpec, LayerSpec, NormSpec, PostSpec, RopeSpec, VisionSpec
from axzoo.parts.embedding_files import NPY, extract_embedding
from axzoo.parts.kinds import KINDS
from axzoo.parts.lock import Lock, make_lock
from axzoo.parts.lock_index import read_index
from axzoo.parts.part import verified_blocks
from axzoo.parts.tensor_names import adds_nothing, ignore_patterns, model_names
from tiny_model import LAYERS, Checkpoint, make_checkpoint

Tensors = dict[str, torch.Tensor]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint.folder, tmp_path / "checkpoint"))


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "tied", {"tie_word_embeddings": True}).folder


def _write(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: value.contiguous() for name, value in change(tensors).items()}, folder / "model.safetensors")


def _lock(folder: Path, model_type: str = "llama", **arguments: Any) -> Lock:
    return make_lock(folder, model_type, LAYERS, **arguments)


def _digests(lock: Lock) -> list[dict[str, str]]:
    return [{role: tensor.blake3 for role, tensor in part.tensors.items()} for part in lock.parts]


def _refusal(folder: Path, **arguments: Any) -> str:
    with pytest.raises(AxzooError) as error:
        _lock(folder, **arguments)
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


RENAMES: dict[str, Callable[[str], str]] = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "data parallelism": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "each layer compiled": lambda name: name.replace("layers.0.", "layers.0._orig_mod."),
    "activation checkpointing": lambda name: name.replace("layers.1.", "layers.1._checkpoint_wrapped_module."),
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name.replace('.mlp.', '.mlp._fsdp_wrapped_module.')}",
    "base model": lambda name: name.removeprefix("model."),
    "base model, compiled": lambda name: f"_orig_mod.{name.removeprefix('model.')}",
    "attribute of another module": lambda name: f"model.{name}",
    "merged adapter": lambda name: f"base_model.model.{name}",
    "text tower": lambda name: name.replace("model.", "model.language_model.") if name != HEAD else name,
    "text tower without base": lambda name: name.replace("model.", "language_model.") if name != HEAD else name,
}


@pytest.mark.parametrize("rename", RENAMES.values(), ids=RENAMES)
def test_names_of_common_tools_are_understood(folder: Path, rename: Callable[[str], str]) -> None:
    expected = _lock(folder)
    original = load_file(folder / "model.safetensors")
    _write(folder, lambda tensors: {rename(name): value for name, value in tensors.items()})
    lock = _lock(folder)
    assert _digests(lock) == _digests(expected)
    assert lock.spec == expected.spec
    for part, before in zip(lock.parts, expected.parts, strict=True):
        for role, tensor in part.tensors.items():  # as compile jobs read them
            name = before.tensors[role].name
            assert tensor.name == rename(name)
            rows = np.concatenate(list(verified_blocks(open_checkpoint(folder), tensor)))
            np.testing.assert_array_equal(rows, original[name].numpy())
    extract_embedding(folder, folder / "embedding")
    np.testing.assert_array_equal(np.load(folder / "embedding" / NPY), original[EMBED].numpy())


@pytest.mark.parametrize("rename", [RENAMES["base model"], RENAMES["data parallelism"]])
def test_a_tied_model_under_other_names(tied: Path, rename: Callable[[str], str]) -> None:
    expected = _digests(_lock(tied))
    _write(tied, lambda tensors: {rename(name): value for name, value in tensors.items()})
    assert _digests(_lock(tied)) == expected
    _write(tied, lambda tensors: tensors | {rename(HEAD): tensors[rename(EMBED)].clone()})
    assert _digests(_lock(tied)) == expected
    _write(tied, lambda tensors: tensors | {rename(HEAD): tensors[rename(EMBED)] + 1})
    assert f"{rename(HEAD)} differs from {rename(EMBED)}" in str(_refused(tied))


def _refused(folder: Path) -> AxzooError:
    with pytest.raises(AxzooError) as error:
        _lock(folder)
    return error.value


@pytest.mark.parametrize("model_type", supported_model_types())
@pytest.mark.parametrize("change", ["_orig_mod.", "module.", "other.prefix.", "without base"])
def test_every_family_is_found_under_other_names(model_type: str, change: str) -> None:
    needed = _needed(model_type)
    embedding = next(name for name in needed if "embed" in name)
    base = embedding.partition(".")[0] + "."
    stored = [name.removeprefix(base) if change == "without base" else change + name for name in needed]
    assert model_names(stored, needed, embedding) == dict(zip(needed, stored, strict=True))
    assert model_names(needed, needed, embedding) == {name: name for name in needed}


def _needed(model_type: str) -> list[str]:
    """The names of a family's tensors."""
    layer = LayerSpec(32, 48, 4, 2, 8, NormSpec("rms_norm", 1e-5), RopeSpec(1e4, 8), 128)
    vision = VisionSpec(14, 48, 96, 2, 4, 5, 32, 4, 2) if model_type in VISION_MODEL_TYPES else None
    spec = DecoderSpec(model_type, LAYERS, 262, False, layer, PostSpec(32, 262, layer.norm), vision=vision)
    family = load_family(model_type)
    refs = [kind.tensors(family, spec, part.index) for kind in KINDS for part in kind.ids(spec)]
    return list(dict.fromkeys(ref.name for roles in refs for ref in roles.values()))


def test_two_versions_of_a_tensor_are_refused(folder: Path) -> None:
    _write(folder, lambda tensors: tensors | {f"module.{Q}": tensors[Q] + 1})
    assert f"the checkpoint has both {Q} and module.{Q}, two versions of {Q}: remove one" in _refusal(folder)


def test_two_models_in_one_checkpoint_are_refused(folder: Path) -> None:
    _write(folder, lambda t: {f"{who}.{name}": value + 0 for who in ("actor", "ref") for name, value in t.items()})
    assert "is missing tensors" in _refusal(folder)


DERIVED = [
    "model.rotary_emb.inv_freq", "rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.layers.1.self_attn.rotary_emb.cos_cached", "model.layers.1.self_attn.rotary_emb.sin_cached",
    "model.rotary_emb.original_inv_freq", "model.rotary_emb.long_inv_freq", "transformer.rotary_pos_emb.inv_freq",
    "rope.freqs", "freqs_cis", "model.freqs_cos", "model.causal_mask", "model.embeddings.position_ids",
    "model.layers.0.self_attn.masked_bias", "v_head.summary.weight", "v_head.summary.bias", "score.weight",
    "value_head.weight", "classifier.weight", "module.v_head.summary.weight", "_orig_mod.model.rotary_emb.inv_freq",
]  # fmt: skip


@pytest.mark.parametrize("name", DERIVED)
def test_tensors_that_add_nothing_are_passed_over(folder: Path, name: str) -> None:
    expected = _lock(folder)
    _write(folder, lambda tensors: tensors | {name: torch.rand(3)})
    assert _lock(folder) == expected


def test_what_the_model_needs_is_never_passed_over() -> None:
    for model_type in supported_model_types():
        for name in _needed(model_type):
            assert not adds_nothing(name, getattr(load_family(model_type), "IGNORED_TENSORS", None))


UNKNOWN = {
    "a gate": ["model.layers.0.mlp.gate.weight"],
    "a bias": ["model.layers.0.self_attn.o_proj.bias"],
    "a scale": ["model.layers.0.self_attn.k_scale", "model.layers.1.self_attn.k_scale"],
    "many": [f"model.layers.{i}.mlp.up_proj.weight" for i in range(2, 9)],
    "very many": [f"model.layers.{i}.mlp.up_proj.extra{n}" for i in range(2) for n in range(9)],
    "another model": [f"visual.blocks.{i}.weight" for i in range(8)],
    "a head that is no head": ["model.layers.0.score.weight"],
    "a name for a shell": ["$(touch x); a 'b'.weight"],
    "not the end of a name": ["model.rotary_emb.inv_freq.weight"],
}


@pytest.mark.parametrize("names", UNKNOWN.values(), ids=UNKNOWN)
def test_other_tensors_are_refused_and_the_printed_advice_works(folder: Path, tmp_path: Path, names: list[str]) -> None:
    expected = _lock(folder)
    _write(folder, lambda tensors: tensors | {name: torch.ones(2) for name in names})
    refusal = _refusal(folder)
    assert f"has unexpected tensor{'s' * (len(names) > 1)} {names[0]}" in refusal
    option = refusal.partition("or pass ")[2]
    fetch(FolderSource(str(folder)), tmp_path / "fetched")
    lock = ["lock", "--source", str(tmp_path / "fetched/source.json"), "--model_type", "llama"]
    words = [*lock, "--num_hidden_layers", str(LAYERS), "--output", str(tmp_path / "locks")]
    assert main(words) == 1
    assert main([*words, *shlex.split(option)]) == 0
    assert read_index(tmp_path / "locks").ignored == {"tensors": sorted(shlex.split(option)[1:])}
    assert json.loads((tmp_path / "locks/made_from.json").read_text())["ignore_tensors"] == sorted(
        shlex.split(option)[1:]
    )
    assert _digests(_lock(folder, ignore_tensors=shlex.split(option)[1:])) == _digests(expected)


@pytest.mark.parametrize("pattern", ["nothing.*", Q, "model.layers.*", "lm_head.weight", "model.rotary_emb.inv_freq"])
def test_a_pattern_without_an_unneeded_tensor_is_refused(folder: Path, pattern: str) -> None:
    message = _refusal(folder, ignore_tensors=[pattern])
    assert f"ignore_tensors: '{pattern}' matches no tensor of the checkpoint that could be ignored" in message


def test_a_pattern_never_removes_what_the_build_needs(folder: Path) -> None:
    expected = _lock(folder)
    _write(folder, lambda tensors: tensors | {"model.layers.0.self_attn.k_scale": torch.ones(1)})
    assert _digests(_lock(folder, ignore_tensors=["*"])) == _digests(expected)
    _write(folder, lambda tensors: {name: value for name, value in tensors.items() if name != Q})
    assert f"is missing tensor {Q}" in _refusal(folder, ignore_tensors=["*"])


CAUSES: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "adapter beside the model": (
        lambda t: t | {Q.replace(".weight", ".lora_A.default.weight"): torch.ones(2, 2)},
        "it is an adapter that is not merged: merge it into its model (merge_and_unload of peft)",
    ),
    "adapter inside the model": (
        lambda t: {name.replace("q_proj.weight", "q_proj.base_layer.weight"): value for name, value in t.items()},
        "it is an adapter that is not merged",
    ),
    "adapter alone": (
        lambda t: {f"base_model.model.{Q}".replace(".weight", f".lora_{x}.weight"): torch.ones(2, 2) for x in "AB"},
        "it is an adapter that is not merged",
    ),
    "reward model": (
        lambda t: {name: v for name, v in t.items() if name != HEAD} | {"score.weight": torch.ones(1, 32)},
        "it is a reward model or classifier with the head score, not a language model",
    ),
    "value model": (
        lambda t: {name: v for name, v in t.items() if name != HEAD} | {"v_head.summary.weight": torch.ones(1, 32)},
        "it is a reward model or classifier with the head v_head, not a language model",
    ),
    "quantized": (
        lambda t: t | {Q.replace("weight", "weight_scale"): torch.ones(32)},
        "the weights are quantized in a way that axzoo does not read: use the unquantized checkpoint",
    ),
    "no head": (
        lambda t: {name: value for name, value in t.items() if name != HEAD},
        'if its head is the embedding, pass a model_config with {"tie_word_embeddings": true}; otherwise the file',
    ),
    "another model": (
        lambda t: {name: value for name, value in t.items() if "layers.1" not in name},
        "check that config.json belongs to these weights",
    ),
}


@pytest.mark.parametrize("change, cause", CAUSES.values(), ids=CAUSES)
def test_refusals_name_the_cause(folder: Path, change: Callable[[Tensors], Tensors], cause: str) -> None:
    _write(folder, change)
    assert cause in _refusal(folder)


def _with_advice(folder: Path, text: str) -> Lock:
    """A lock with the model_config that a message advises."""
    path = folder.parent / "model_config.json"
    path.write_text(text.partition("model_config with ")[2].partition("}")[0] + "}")
    return _lock(folder, model_config=path)


def test_a_missing_head_is_settled_by_the_key_that_the_message_names(folder: Path) -> None:
    _write(folder, lambda tensors: {name: value for name, value in tensors.items() if name != HEAD})
    lock = _with_advice(folder, _refusal(folder))
    assert lock.spec.tie_word_embeddings
    assert lock.of_kind("post")[0].tensors["lm_head.weight"].name == EMBED


def test_a_head_of_its_own_is_settled_by_the_key_that_the_message_names(tied: Path) -> None:
    alone = _lock(tied)
    _write(tied, lambda tensors: tensors | {HEAD: tensors[EMBED] + 1})
    refusal = _refusal(tied)
    assert "sets tie_word_embeddings, but lm_head.weight differs from model.embed_tokens.weight" in refusal
    own = _with_advice(tied, refusal)
    assert own.of_kind("post")[0].tensors["lm_head.weight"].name == HEAD
    ignored = _lock(tied, ignore_tensors=shlex.split(refusal.partition("or pass --ignore_tensors ")[2]))
    assert replace(ignored, ignored={}) == alone


def test_ignored_keys_and_tensors_are_recorded(folder: Path) -> None:
    assert _lock(folder).ignored == {}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"logit_scale": 2.0}))
    assert _lock(folder, ignore_config_keys=["logit_scale"]).ignored == {"config_keys": ["logit_scale"]}
    assert read_spec(folder, "llama", LAYERS, ["logit_scale"]).num_hidden_layers == LAYERS


def test_patterns_are_quoted_for_a_shell_and_few() -> None:
    assert ignore_patterns(["a", "b.1"]) == ["a", "b.1"]
    assert ignore_patterns([f"a.{i}.b" for i in range(6)]) == ["'a.*.b'"]
    assert ignore_patterns([f"a.b{i}" for i in range(6)]) == ["'a.*'"]
    assert ignore_patterns(["a; rm b", "-rf"]) == ["'a*rm*b'", "'*rf'"]
