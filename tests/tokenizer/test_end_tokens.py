"""The tokens that end an answer come from every file that names one."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.end_tokens import configured_end_ids
from axzoo.tokenizer.local import load_tokenizer
from axzoo.tokenizer.token_ids import tokenizer_or_ids

START, END, TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
WITHOUT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def _write(byte_level: Path, folder: Path, generation: Any, model: Any, eos: str | None, template: str | None) -> Path:
    shutil.copytree(byte_level, folder)
    files = {"generation_config.json": generation, "config.json": model}
    for name, listed in files.items():
        if listed is not ...:
            (folder / name).write_text(json.dumps({"eos_token_id": listed}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


CASES = product((..., None, 10, [10, 11]), (..., 12, [12, 10]), (None, TEXT), (None, TURNS, WITHOUT))


@pytest.mark.parametrize(("generation", "model", "eos", "template"), list(CASES))
def test_every_source_counts(
    byte_level: Path, tmp_path: Path, generation: Any, model: Any, eos: str | None, template: str | None
) -> None:
    tokenizer = load_tokenizer(_write(byte_level, tmp_path / "t", generation, model, eos, template))
    ids = {text: tokenizer.backend.token_to_id(text) for text in (START, END, TEXT)}
    expected: set[Any] = set()
    for listed in (generation, model):
        expected |= set(listed) if isinstance(listed, list) else {listed} - {..., None}
    expected |= {ids[TEXT]} if eos else set()
    expected |= {ids[END]} if template == TURNS else set()
    assert set(tokenizer.eos_token_ids) == expected
    assert len(tokenizer.eos_token_ids) == len(expected)


def test_the_order_is_that_of_the_sources(byte_level: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(_write(byte_level, tmp_path / "t", [11, 10], 12, TEXT, TURNS))
    text, end = (tokenizer.backend.token_to_id(token) for token in (TEXT, END))
    assert tokenizer.eos_token_ids == (11, 10, 12, text, end)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("listed", ["2", [2, "3"], True, [[2]], {"a": 2}, 2.0, 1 << 40])
def test_other_values_are_refused(tmp_path: Path, name: str, listed: Any) -> None:
    (tmp_path / name).write_text(json.dumps({"eos_token_id": listed}))
    with pytest.raises(AxzooError, match=f"{name}: eos_token_id must be a token id or a list of them"):
        configured_end_ids(tmp_path)


def test_negative_ids_mean_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [-1, 3]}))
    assert configured_end_ids(tmp_path) == (3,)


def test_a_model_without_a_tokenizer_has_the_configured_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [7, 3]}))
    tokenizer = tokenizer_or_ids(tmp_path, 100)
    assert tokenizer.eos_token_ids == (7, 3)
    assert tokenizer.encode("1é") == [49, 195 - 100, 169 - 100]
    assert tokenizer.decode([49, 95]) == "<49><95>"
    assert tokenizer.chat is None
