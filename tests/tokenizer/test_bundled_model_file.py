"""A bundle built from a checkpoint that has only a tokenizer.model contains that file and loads."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from axzoo.bundle.completion import complete_bundle
from axzoo.parts.lock import make_lock, write_lock
from axzoo.tokenizer.local import load_tokenizer
from tiny_model import Built, make_checkpoint


def test_a_bundle_contains_the_tokenizer_model(s8: Built, llama_model: Path, tmp_path: Path) -> None:
    built = s8.moved(tmp_path / "results" / "tiny-w8a16")
    checkpoint = make_checkpoint(tmp_path / "checkpoint", {"vocab_size": 400}).folder  # a row for each piece
    for name in ("tokenizer.json", "chat_template.jinja"):
        (checkpoint / name).unlink()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(llama_model / name, checkpoint)
    locks = tmp_path / "locks"
    source = json.loads((built.locks / "index.json").read_text())["source"]
    write_lock(make_lock(checkpoint, built.model_type, built.num_hidden_layers), locks, checkpoint, source)
    complete_bundle(replace(built.plan, lock=locks, source=checkpoint / "source.json"))
    bundled = load_tokenizer(built.folder / "tokenizer")
    assert (built.folder / "tokenizer/tokenizer.model").read_bytes() == (llama_model / "tokenizer.model").read_bytes()
    assert "tokenizer/tokenizer.model" in json.loads((built.folder / "manifest.json").read_text())["files"]
    assert bundled.encode_chat([{"role": "user", "content": "法国 😀"}]) == load_tokenizer(llama_model).encode_chat(
        [{"role": "user", "content": "法国 😀"}]
    )
