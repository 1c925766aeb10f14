"""Trains SentencePiece models and writes them as checkpoint folders without a tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece

MINICPM_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{'<用户>' + message['content'].strip() + '<AI>'}}{% else %}{{message['content'].strip()}}{% endif %}{% endfor %}"
)


def train(folder: Path, corpus: Sequence[str], kind: str, dummy_prefix: bool) -> Path:
    """Train and write tokenizer.model. As in Llama and MiniCPM, text is not normalized."""
    (folder / "corpus.txt").write_text("\n".join(corpus))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type=kind,
        vocab_size=400,
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=dummy_prefix,
        split_digits=True,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    for name in ("corpus.txt", "tokenizer.vocab"):
        (folder / name).unlink()
    return folder


def configure(folder: Path, **config: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def special(index: int, text: str, **flags: bool) -> dict[str, Any]:
    return {str(index): {"content": text, "special": True, "lstrip": False, "rstrip": False, **flags}}
