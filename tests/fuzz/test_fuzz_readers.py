"""Untrusted files read by axzoo itself: headers, indices, configs, matrices, locks, bundles and tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import FUZZED, read_or_reject
from hypothesis import given
from hypothesis import strategies as st
from mutations import changed_bytes, changed_json

from axzoo.backends.host.inspection import inspect_file
from axzoo.bundle.manifest import read_manifest
from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.gguf.reader import GgufCheckpoint
from axzoo.checkpoint.tensors import row_blocks
from axzoo.core.files import read_json
from axzoo.fetch.sources import checkpoint_folder
from axzoo.matrix.entries import load_zoo
from axzoo.model.families import supported_model_types
from axzoo.model.reading import merge_model_config, spec_of
from axzoo.parts.part import read_part
from axzoo.runtime.bundle_folder import open_bundle
from axzoo.runtime.post_config import read_post_config
from axzoo.tokenizer.tokenizer_folder import read_tokenizer_folder
from axzoo.tokenizer.tokenizer_process import load_backend
from tiny_model import Built, Checkpoint

ROOT = Path(__file__).parents[2]


def read_everything(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    for name, info in checkpoint.tensors.items():
        if info.shape:
            for _ in row_blocks(checkpoint, name, 0, min(info.shape[0], 8)):
                pass


@FUZZED
@given(data=st.data())
def test_safetensors_headers(data: st.DataObject, checkpoint: Checkpoint, tmp_path: Path) -> None:
    whole = (checkpoint.folder / "model.safetensors").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    if data.draw(st.booleans()):
        header = data.draw(changed_json(json.loads(whole[8 : 8 + size])))
        file = len(header).to_bytes(8, "little") + header + whole[8 + size :]
    else:
        file = data.draw(changed_bytes(whole, 8 + size))
    (tmp_path / "model.safetensors").write_bytes(file)
    read_or_reject(lambda: read_everything(tmp_path), tmp_path)


@FUZZED
@given(data=st.data())
def test_shard_indices(data: st.DataObject, checkpoint: Checkpoint, tmp_path: Path) -> None:
    shard = tmp_path / "model-00001-of-00001.safetensors"
    if not shard.exists():
        shard.write_bytes((checkpoint.folder / "model.safetensors").read_bytes())
    names = open_checkpoint(checkpoint.folder).tensors
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard.name)}
    (tmp_path / "model.safetensors.index.json").write_bytes(data.draw(changed_json(index)))
    read_or_reject(lambda: read_everything(tmp_path), tmp_path)


def _config(model_type: str) -> dict[str, Any]:
    """A config.json that contains the keys of all families."""
    common = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 300,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_theta": 1e4,
        "rope_scaling": None,
    }
    return {"model_type": model_type, **common, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}


@pytest.mark.parametrize("model_type", supported_model_types())
@FUZZED
@given(data=st.data())
def test_configs(model_type: str, data: st.DataObject, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(data.draw(changed_json(_config(model_type))))

    def read() -> None:
        config = read_json(tmp_path / "config.json")
        spec_of(config if isinstance(config, dict) else {}, tmp_path / "config.json", ())

    read_or_reject(read, tmp_path)


@FUZZED
@given(data=st.data())
def test_overriding_configs(data: st.DataObject, tmp_path: Path) -> None:
    (tmp_path / "o.json").write_bytes(data.draw(changed_json({"rope_theta": 1e6, "rope_scaling": {"type": "linear"}})))

    def read() -> None:
        override = read_json(tmp_path / "o.json")
        if isinstance(override, dict):
            merge_model_config(_config("llama"), override, tmp_path / "o.json")

    read_or_reject(read, tmp_path)


@FUZZED
@given(data=st.data())
def test_matrices(data: st.DataObject, tmp_path: Path) -> None:
    (tmp_path / "chips.yaml").write_text((ROOT / "config/chips.yaml").read_text())
    demo = (ROOT / "config/demo.yaml").read_bytes()
    if data.draw(st.booleans()):
        text = yaml.safe_dump(json.loads(data.draw(changed_json(yaml.safe_load(demo))))).encode()
    else:
        text = data.draw(changed_bytes(demo))
    (tmp_path / "zoo.yaml").write_bytes(text)
    read_or_reject(lambda: load_zoo(tmp_path / "zoo.yaml", tmp_path / "chips.yaml"), tmp_path)


@FUZZED
@given(data=st.data())
def test_gguf_headers(data: st.DataObject, gguf: bytes, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(data.draw(changed_bytes(gguf, data.draw(st.sampled_from([64, 1024, len(gguf) // 2])))))

    def read() -> None:
        checkpoint = GgufCheckpoint(file)
        for name, info in checkpoint.tensors.items():
            checkpoint.read_rows(name, 0, min(info.shape[0], 8))

    read_or_reject(read, tmp_path)


@FUZZED
@given(data=st.data())
def test_axmodel_files(data: st.DataObject, s8: Built, tmp_path: Path) -> None:
    whole = s8.layers[0].read_bytes()
    start = data.draw(st.sampled_from([0, max(0, len(whole) - 6000)]))  # the metadata is at the end
    file = whole[:start] + data.draw(changed_bytes(whole[start:], 6000))
    (tmp_path / "l0.axmodel").write_bytes(file)
    read_or_reject(lambda: inspect_file(tmp_path / "l0.axmodel"), tmp_path)


@FUZZED
@given(data=st.data())
def test_lock_and_receipt_files(data: st.DataObject, s8: Built, tmp_path: Path) -> None:
    (tmp_path / "layer_0.json").write_bytes(data.draw(changed_json(read_json(s8.locks / "layer_0.json"))))
    read_or_reject(lambda: read_part(tmp_path / "layer_0.json"), tmp_path)
    source = {"source": {"path": "x"}, "root": ".", "files": {"config.json": {"size": 1, "sha256": "0" * 64}}}
    (tmp_path / "source.json").write_bytes(data.draw(changed_json(source)))
    read_or_reject(lambda: checkpoint_folder(tmp_path / "source.json"), tmp_path)


BUNDLE_CONFIG = {
    "model_name": "m",
    "template_filename_axmodel": "l%d.axmodel",
    "axmodel_num": 2,
    "eos_token_ids": [1],
    "filename_post_axmodel": "p.axmodel",
    "filename_tokens_embed": "e.bin",
    "tokens_embed_num": 4,
    "chat": True,
    "tokens_embed_size": 8,
    "post_config_path": "post_config.json",
    "bos": 0,
    "eos": 0,
    "use_mmap_load_embed": 1,
    "system_prompt": "",
}


@FUZZED
@given(data=st.data())
def test_bundles(data: st.DataObject, tmp_path: Path) -> None:
    for name in ("l0.axmodel", "l1.axmodel", "p.axmodel", "e.bin"):
        (tmp_path / name).touch()
    (tmp_path / "config.json").write_bytes(data.draw(changed_json(BUNDLE_CONFIG)))
    read_or_reject(lambda: open_bundle(tmp_path), tmp_path)
    post_config = {"enable_temperature": True, "temperature": 0.9, "top_k": 10}
    (tmp_path / "post_config.json").write_bytes(data.draw(changed_json(post_config)))
    read_or_reject(lambda: read_post_config(tmp_path / "post_config.json"), tmp_path)


@FUZZED
@given(data=st.data())
def test_manifests(data: st.DataObject, tmp_path: Path) -> None:
    digest = {"sha256": "0" * 64, "size": 1}
    manifest = {"name": "m", "chip": "AX650", "files": {"a": digest, "b/c": digest}, "recipe": {}, "spec": {}}
    (tmp_path / "manifest.json").write_bytes(data.draw(changed_json(manifest)))
    read_or_reject(lambda: read_manifest(tmp_path), tmp_path)


@FUZZED
@given(data=st.data())
def test_tokenizer_folders(data: st.DataObject, checkpoint: Checkpoint, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        content = json.loads((checkpoint.folder / name).read_text()) if (checkpoint.folder / name).exists() else {}
        if name == "tokenizer.json":
            content["model"]["vocab"] = dict(list(content["model"]["vocab"].items())[:8])
        (tmp_path / name).write_bytes(data.draw(changed_json(content or {"eos_token_id": [1, 2]})))
    read_or_reject(lambda: load_backend(read_tokenizer_folder(tmp_path), None), tmp_path)
