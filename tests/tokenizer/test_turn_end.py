"""Which end-of-sequence token is reported to the host program."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from axzoo.tokenizer.conversation import end_id
from axzoo.tokenizer.local import load_tokenizer

TURNS = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
CLOSED = TURNS + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"


@pytest.mark.parametrize(
    ("template", "listed", "chat", "expected"),
    [
        (TURNS, [0, 2], True, 2),
        (CLOSED, [0, 2], True, 2),
        (CLOSED, [0], True, 0),
        (TURNS, [0], True, 2),
        (TURNS, None, True, 2),
        (TURNS, [0, 2], False, 0),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", [2], True, 0),
        ("{{ raise_exception('no') }}", [2, 1], True, 0),
    ],
)
def test_the_token_after_an_answer(
    byte_level: Path, tmp_path: Path, template: str, listed: list[int] | None, chat: bool, expected: int
) -> None:
    folder = Path(shutil.copytree(byte_level, tmp_path / "tokenizer"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<|endoftext|>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    (folder / "chat_template.jinja").write_text(template)
    assert end_id(load_tokenizer(folder), chat) == expected


def test_without_a_template(byte_level: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(byte_level, tmp_path / "tokenizer"))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").unlink()
    assert end_id(load_tokenizer(folder), False) is None
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    assert end_id(load_tokenizer(folder), False) == 2
