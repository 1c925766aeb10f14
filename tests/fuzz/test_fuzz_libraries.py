"""Untrusted files that are read or executed by libraries: torch, sentencepiece, ONNX Runtime, tokenizers and Jinja."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import FUZZED, read_or_reject
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import changed_bytes, changed_json
from safetensors.torch import load_file, save_file

from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.gguf.conversion import convert
from axzoo.checkpoint.tensors import row_blocks
from axzoo.runtime.bundle_folder import ModelFiles
from axzoo.runtime.engine import InferenceSession
from axzoo.runtime.model import Mode, load_files
from axzoo.tokenizer.chat_template import render_chat
from axzoo.tokenizer.tokenizer_folder import TokenizerBackend, read_tokenizer_folder
from axzoo.tokenizer.tokenizer_process import load_backend
from tiny_model import SHAPE, Built, Checkpoint

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("fetch", "tokenizer")]
from piece_models import configure, train
from tiny_gguf import TEMPLATE

TEXT = "Hello, 你好 😀 <s> </s>"


def load_here(folder: Path) -> TokenizerBackend:
    """Load a tokenizer in this process, so that its memory and time are measured."""
    return load_backend(read_tokenizer_folder(folder), None).backend


def read_everything(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    for name, info in checkpoint.tensors.items():
        if info.shape:
            for _ in row_blocks(checkpoint, name, 0, min(info.shape[0], 8)):
                pass


@pytest.fixture(scope="module")
def pickled(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("pickled") / "pytorch_model.bin"
    torch.save(load_file(checkpoint.folder / "model.safetensors"), file)
    return file.read_bytes()


@FUZZED
@given(data=st.data())
def test_pickled_checkpoints(data: st.DataObject, pickled: bytes, tmp_path: Path) -> None:
    """The pickle is at the start of the file, the directory of the archive at the end."""
    start = data.draw(st.sampled_from([0, len(pickled) - 3000]))
    changed = pickled[:start] + data.draw(changed_bytes(pickled[start:], 3000))
    (tmp_path / "pytorch_model.bin").write_bytes(changed)
    read_or_reject(lambda: read_everything(tmp_path), tmp_path)


@FUZZED
@given(data=st.data())
def test_packed_checkpoints(data: st.DataObject, tmp_path: Path) -> None:
    """GPTQ: the quantization_config in config.json, and the header of the packed tensors."""
    parts = {"qweight": (4, 16), "qzeros": (2, 2), "scales": (2, 16), "g_idx": (32,)}
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True, "checkpoint_format": "gptq"}
    dtypes = {"scales": torch.float16}
    tensors = {f"x.{name}": torch.ones(shape, dtype=dtypes.get(name, torch.int32)) for name, shape in parts.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    config: dict[str, Any] = {"quantization_config": quantization}
    if data.draw(st.booleans()):
        (tmp_path / "config.json").write_bytes(data.draw(changed_json(config)))
    else:
        (tmp_path / "config.json").write_text(json.dumps(config))
        if data.draw(st.booleans()):
            header = data.draw(changed_json(json.loads(whole[8:size])))
            whole = len(header).to_bytes(8, "little") + header + whole[size:]
        else:
            whole = whole[:size] + data.draw(changed_bytes(whole[size:]))
        (tmp_path / "model.safetensors").write_bytes(whole)
    read_or_reject(lambda: read_everything(tmp_path), tmp_path)


@FUZZED
@given(data=st.data())
def test_gguf_conversion(data: st.DataObject, gguf: bytes, tmp_path: Path) -> None:
    """The checkpoint is converted, and its tokenizer, which comes from the vocabulary in the header, is loaded."""
    (tmp_path / "tiny.gguf").write_bytes(data.draw(changed_bytes(gguf, data.draw(st.sampled_from([1024, 8192])))))
    output = tmp_path / "out"
    output.mkdir(exist_ok=True)

    def read() -> None:
        convert(tmp_path / "tiny.gguf", output)
        load_here(output).encode(TEXT, True)

    read_or_reject(read, tmp_path, output)
    for path in output.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    corpus = ["The capital of France is Paris. The quick brown fox jumps over the lazy dog", "法国的首都是巴黎"] * 8
    return (train(tmp_path_factory.mktemp("pieces"), corpus, "bpe", True) / "tokenizer.model").read_bytes()


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "ChatGLMTokenizer"])
@FUZZED
@given(data=st.data())
def test_tokenizer_models(kind: str, data: st.DataObject, pieces: bytes, tmp_path: Path) -> None:
    """The pieces are at the start of the file, the trainer settings and the normalizer at the end."""
    start = data.draw(st.sampled_from([0, len(pieces) - 400]))
    (tmp_path / "tokenizer.model").write_bytes(pieces[:start] + data.draw(changed_bytes(pieces[start:])))
    configure(tmp_path, tokenizer_class=kind)

    def read() -> None:
        tokenizer = load_here(tmp_path)
        ids = tokenizer.encode(TEXT, True)
        tokenizer.decode(ids, True)
        assert tokenizer.vocab_size >= 0

    read_or_reject(read, tmp_path)


@settings(FUZZED, max_examples=max(10, FUZZED.max_examples // 10))
@given(data=st.data())
def test_chat_templates(data: st.DataObject, tmp_path: Path) -> None:
    """Each template runs in a separate process."""
    template = data.draw(changed_bytes(TEMPLATE.encode())).decode(errors="replace")
    messages = [{"role": "user", "content": TEXT}]
    read_or_reject(lambda: render_chat(template, messages, {"bos_token": "<s>"}, True), tmp_path)


@pytest.mark.parametrize("mode", ["exact", "fast"])
@FUZZED
@given(data=st.data())
def test_running_axmodel_files(mode: Mode, data: st.DataObject, s8: Built, tmp_path: Path) -> None:
    """The nodes are at the start of the file, the weights in the middle, inputs, outputs and metadata at the end."""
    path = data.draw(st.sampled_from([s8.layers[0], s8.post]))
    whole = path.read_bytes()
    start = data.draw(st.sampled_from([0, max(0, len(whole) - 3000)]))
    changed = tmp_path / "x.axmodel"
    changed.write_bytes(whole[:start] + data.draw(changed_bytes(whole[start:], 6000)))

    def read() -> None:
        session = InferenceSession(changed, mode=mode)
        for group in range(session.num_shape_groups):
            feed = {node.name: np.zeros(node.shape, node.dtype) for node in session.get_inputs(group)}
            session.run(None, feed, shape_group=group)
        layers = (s8.layers[0] if path == s8.post else changed, s8.layers[1])
        post = changed if path == s8.post else s8.post
        model = load_files(
            ModelFiles(
                layers=layers,
                post=post,
                embedding=s8.embedding,
                vocab_size=SHAPE["vocab_size"],
                hidden_size=SHAPE["hidden_size"],
            ),
            mode,
        )
        model.prefill(range(9))
        model.decode(1)

    read_or_reject(read, tmp_path)
