"""Writing embedding files from checkpoints of every family and format."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from axzoo.core.errors import AxzooError
from axzoo.model.families import supported_model_types
from axzoo.parts.embedding_files import BFLOAT16, FLOAT32, NPY, extract_embedding, fp32_to_bf16
from axzoo.weights.bf16 import truncated

V, H = 11, 8
LLAMA = {
    "hidden_size": H, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": V,
    "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "hidden_act": "silu",
}  # fmt: skip
PHI = {key: value for key, value in LLAMA.items() if key != "rms_norm_eps"} | {
    "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "hidden_act": "gelu_new", "num_key_value_heads": 2,
    "qk_layernorm": False, "tie_word_embeddings": False,
}  # fmt: skip
CHATGLM = {
    "padded_vocab_size": V, "hidden_size": H, "ffn_hidden_size": 12, "num_layers": 1, "num_attention_heads": 2,
    "kv_channels": 4, "multi_query_group_num": 1, "seq_length": 32, "layernorm_epsilon": 1e-5, "add_qkv_bias": True,
}  # fmt: skip
MINICPM = LLAMA | {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 4}
USUAL = "model.embed_tokens.weight"
SPECIAL: dict[str, tuple[dict[str, Any], str]] = {
    "qwen3": (LLAMA | {"head_dim": 4}, USUAL),
    "phi": (PHI, USUAL),
    "phi3": (LLAMA | {"num_key_value_heads": 2}, USUAL),
    "minicpm": (MINICPM, USUAL),
    "minicpmv": (MINICPM, "llm.model.embed_tokens.weight"),
    "chatglm": (CHATGLM, "transformer.embedding.word_embeddings.weight"),
}
TABLE = {model_type: SPECIAL.get(model_type, (LLAMA, USUAL)) for model_type in supported_model_types()}
"""config.json and the name of the embedding tensor, by model_type."""


def _values(dtype: Any = np.float32) -> NDArray[Any]:
    return np.random.default_rng(0).standard_normal((V, H)).astype(dtype)


def _checkpoint(folder: Path, model_type: str, tensors: dict[str, NDArray[Any]]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TABLE[model_type][0] | {"model_type": model_type}))
    save_file(tensors, folder / "model.safetensors")
    return folder


def _check(output: Path, values: NDArray[Any], bf16: NDArray[Any] | None = None) -> None:
    """All three files contain `values`, whatever their dtype in the checkpoint."""
    exact = values.astype(np.float32)
    table = np.load(output / NPY, mmap_mode="r")
    assert (table.shape, table.dtype) == ((V, H), np.dtype("<f4"))
    assert (output / NPY).read_bytes()[:6] == b"\x93NUMPY"
    assert table.tobytes() == exact.tobytes() == (output / FLOAT32).read_bytes()
    rounded = exact.astype(ml_dtypes.bfloat16) if bf16 is None else bf16
    assert (output / BFLOAT16).read_bytes() == rounded.tobytes()
    assert sorted(path.name for path in output.iterdir()) == sorted([NPY, FLOAT32, BFLOAT16])


@pytest.mark.parametrize("model_type", TABLE)
def test_finds_the_embedding_of_every_family(model_type: str, tmp_path: Path) -> None:
    values = _values()
    other = {"lm_head.weight": -values, "model.norm.weight": values[0]}
    source = _checkpoint(tmp_path / "in", model_type, {TABLE[model_type][1]: values, **other})
    files = extract_embedding(source, tmp_path / "out")
    assert files == tuple(tmp_path / "out" / name for name in (NPY, FLOAT32, BFLOAT16))
    _check(tmp_path / "out", values)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_checkpoint_dtype_with_both_roundings(dtype: Any, tmp_path: Path) -> None:
    values = _values(dtype)
    source = _checkpoint(tmp_path / "in", "llama", {USUAL: values})
    extract_embedding(source, tmp_path / "out")
    _check(tmp_path / "out", values)
    extract_embedding(source, tmp_path / "out", truncated)
    upper = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    _check(tmp_path / "out", values, upper)


def test_embedding_of_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = _values(np.float16)
    source = _checkpoint(tmp_path / "in", "llama", {USUAL: values})
    for size in (1, 4 * H * 3, 4 * H * V):
        monkeypatch.setattr("axzoo.parts.embedding_files.BLOCK_BYTES", size)
        extract_embedding(source, tmp_path / "out")
        _check(tmp_path / "out", values)


def test_pickled_checkpoint(tmp_path: Path) -> None:
    values = _values()
    source = _checkpoint(tmp_path / "in", "llama", {USUAL: values})
    (source / "model.safetensors").unlink()
    torch.save({USUAL: torch.from_numpy(values).bfloat16()}, source / "pytorch_model.bin")
    extract_embedding(source, tmp_path / "out")
    _check(tmp_path / "out", values.astype(ml_dtypes.bfloat16))


def test_gguf_file(tmp_path: Path) -> None:
    values, path = _values(np.float16), tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {"block_count": 1, "context_length": 32, "embedding_length": H, "feed_forward_length": 12}
    for key, value in (sizes | {"attention.head_count": 2, "vocab_size": V}).items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tensor("token_embd.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    extract_embedding(path, tmp_path / "out")
    _check(tmp_path / "out", values)


def test_unknown_config_key_does_not_change_the_embedding(tmp_path: Path) -> None:
    source = _checkpoint(tmp_path / "in", "llama", {USUAL: _values()})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"from_the_future": 1}))
    extract_embedding(source, tmp_path / "out")


OTHER = {"model.embeddings.weight": np.zeros((V, H), np.float32)}


@pytest.mark.parametrize(
    "config, tensors, message",
    [
        ({"model_type": "gpt2"}, {}, "model_type 'gpt2' is not supported; supported are: chatglm, llama"),
        ({"model_type": None}, {}, "model_type 'None' is not supported"),
        ({"model_type": "../llama"}, {}, "is not supported"),
        ({"vocab_size": 12}, {}, rf"tensor {USUAL} has shape \[11, 8\], but .*config.json requires \[12, 8\]"),
        ({"hidden_size": -8}, {}, "config.json: hidden_size is -8, but must be a positive integer"),
        (
            {"model_type": "minicpmv", "scale_emb": 1},
            OTHER,
            "has no tensor llm.model.embed_tokens.weight, the embedding",
        ),
        ({}, OTHER, f"has no tensor {USUAL}, the embedding of a llama model"),
        ({}, {USUAL: np.zeros((V, H), np.int8)}, f"tensor {USUAL} has dtype I8, but must have one of F32"),
    ],
)
def test_mismatched_checkpoint_writes_no_file(
    config: dict[str, Any], tensors: dict[str, NDArray[Any]], message: str, tmp_path: Path
) -> None:
    source = _checkpoint(tmp_path / "in", "llama", tensors if tensors is OTHER else {USUAL: _values()} | tensors)
    changed = TABLE["minicpm"][0] | {"model_type": "llama"} | config
    if changed["model_type"] == "llama":
        changed = {key: value for key, value in changed.items() if key in LLAMA or key in config or key == "model_type"}
    (source / "config.json").write_text(json.dumps(changed))
    with pytest.raises(AxzooError, match=message):
        extract_embedding(source, tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("content", ["[]", "3", "{", "\x00"])
def test_config_that_is_not_a_mapping(content: str, tmp_path: Path) -> None:
    source = _checkpoint(tmp_path / "in", "llama", {USUAL: _values()})
    (source / "config.json").write_text(content)
    with pytest.raises(AxzooError, match=r"config\.json is not (a mapping|valid JSON)"):
        extract_embedding(source, tmp_path / "out")


def test_file_that_is_not_gguf(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"no weights")
    with pytest.raises(AxzooError, match=r"weights is not a folder: give .* or a GGUF file"):
        extract_embedding(tmp_path / "weights", tmp_path / "out")


def test_failure_keeps_existing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is damaged while it is read."""
    values = _values()
    source = _checkpoint(tmp_path / "in", "llama", {USUAL: values})
    extract_embedding(source, tmp_path / "out")
    monkeypatch.setattr("axzoo.parts.embedding_files.BLOCK_BYTES", 4 * H)
    save_file({USUAL: values + 1}, source / "model.safetensors")

    def damage(table: NDArray[Any]) -> NDArray[Any]:
        (source / "model.safetensors").write_bytes(b"gone")
        return truncated(table)

    with pytest.raises(AxzooError, match=r"model\.safetensors is damaged or incomplete"):
        extract_embedding(source, tmp_path / "out", damage)
    _check(tmp_path / "out", values)


@pytest.mark.parametrize("size", [1, 3, 5, 4 * 100 + 2])
def test_size_that_is_not_a_multiple_of_four_bytes(size: int, tmp_path: Path) -> None:
    source, target = tmp_path / "x.float32.bin", tmp_path / "x.bfloat16.bin"
    source.write_bytes(bytes(size))
    with pytest.raises(AxzooError, match=r"x\.float32\.bin is not a file of fp32 numbers"):
        fp32_to_bf16(source, target)
    assert [path.name for path in tmp_path.iterdir()] == ["x.float32.bin"]


def test_rejects_outputs_that_would_destroy_data(tmp_path: Path) -> None:
    source, npy = tmp_path / "x.float32.bin", tmp_path / "x.npy"
    source.write_bytes(_values().tobytes())
    np.save(npy, _values())
    (tmp_path / "symbolic").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    (tmp_path / "folder").mkdir()
    for output in (source, tmp_path / "symbolic", tmp_path / "hard", tmp_path / "folder/../x.float32.bin"):
        with pytest.raises(AxzooError, match=f"^{re.escape(str(output))} is the input file "):
            fp32_to_bf16(source, output)
    with pytest.raises(AxzooError, match=r"folder is a folder: name the file to write, like .*folder/model\.embed"):
        fp32_to_bf16(source, tmp_path / "folder")
    with pytest.raises(AxzooError, match=r"x\.npy is an \.npy file"):
        fp32_to_bf16(npy, tmp_path / "out")
    assert source.read_bytes() == _values().tobytes()
    assert not (tmp_path / "out").exists()


def test_raw_file_of_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = _values()
    (tmp_path / "in").write_bytes(values.tobytes())
    for size in (4, 12, 1 << 20):
        monkeypatch.setattr("axzoo.parts.embedding_files.BLOCK_BYTES", size)
        fp32_to_bf16(tmp_path / "in", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == values.astype(ml_dtypes.bfloat16).tobytes()
