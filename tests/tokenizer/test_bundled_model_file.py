"""A bundle built from a checkpoint that has only a tokenizer.model contains that file and loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from axzoo.bundle.completion import complete_bundle
from axzoo.tokenizer.local import load_tokenizer
from tiny_model import Built, build, make_checkpoint


def test_a_bundle_contains_the_tokenizer_model(s8: Built, llama_model: Path, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", {"vocab_size": 400})  # a row for each piece
    for name in ("tokenizer.json", "chat_template.jinja"):
        (checkpoint.folder / name).unlink()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(llama_model / name, checkpoint.folder)
    built = build(checkpoint, s8.recipe, tmp_path / "built")
    complete_bundle(built.plan)
    bundled = load_tokenizer(built.folder / "tokenizer")
    assert (built.folder / "tokenizer/tokenizer.model").read_bytes() == (llama_model / "tokenizer.model").read_bytes()
    assert "tokenizer/tokenizer.model" in json.loads((built.folder / "manifest.json").read_text())["files"]
    assert bundled.encode_chat([{"role": "user", "content": "法国 😀"}]) == load_tokenizer(llama_model).encode_chat(
        [{"role": "user", "content": "法国 😀"}]
    )
