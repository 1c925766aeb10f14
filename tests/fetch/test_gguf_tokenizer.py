"""The converted tokenizer compared with the original, and with a plain BPE that uses llama.cpp's regexes."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_gguf import SPECIAL, Tiny
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from axzoo.checkpoint.gguf.conversion import convert

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""llama.cpp, src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM: first single \\p{N}, then GPT-2's words."""


def byte_characters() -> dict[int, str]:
    """GPT-2's bytes_to_unicode."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + rank) for rank, byte in enumerate(others)}


def plain_bpe(text: str, vocabulary: dict[str, int], merges: list[list[str]]) -> list[int]:
    """A slow byte-level BPE: in each word, apply the earliest-learned merge first, leftmost first."""
    ranks, characters = {tuple(pair): rank for rank, pair in enumerate(merges)}, byte_characters()
    ids: list[int] = []
    for piece in regex.findall(r"\p{N}|[^\p{N}]+", text):
        for word in regex.findall(WORDS, piece):
            parts = [characters[byte] for byte in word.encode()]
            while pairs := [(ranks[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in ranks]:
                _, at = min(pairs)
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            ids += [vocabulary[part] for part in parts]
    return ids


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    (path / "checkpoint").mkdir()
    convert(tiny.write(path / "tiny.gguf"), path / "checkpoint")
    return path / "checkpoint"


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> dict[str, Any]:
    """The original's vocabulary and merges."""
    return dict(json.loads(tiny.tokenizer.to_str())["model"])


@pytest.fixture(scope="module")
def loaded(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


@settings(max_examples=300, deadline=None)
@example("in 1969, x2 = 3.14159 and ½ of ٣٤")
@example("they're  there\n\n it's\tthe cat's")
@example("👩\u200d🚀 你好、世界 naïve\x00")
@given(st.text(max_size=60) | st.text("the cat's 019 \n你½", max_size=60))
def test_ids_agree_with_plain_bpe_and_decode_to_the_text(
    tokenizer: Tokenizer, model: dict[str, Any], tiny: Tiny, text: str
) -> None:
    ids = tokenizer.encode(text).ids
    if not any(token in text for token in SPECIAL):
        assert ids == plain_bpe(text, model["vocab"], model["merges"])
    assert ids == tiny.tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_digits_are_split(loaded: PreTrainedTokenizerBase) -> None:
    assert [loaded.decode([index]) for index in loaded("2024 90")["input_ids"]] == ["2", "0", "2", "4", " ", "9", "0"]


def test_special_tokens(loaded: PreTrainedTokenizerBase) -> None:
    assert loaded("<|im_start|>the<tool><|im_end|>")["input_ids"][0] == 1
    assert [loaded(token)["input_ids"] for token in SPECIAL] == [[0], [1], [2], [3]]
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token, loaded.unk_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert loaded.decode([1, 0, 2], skip_special_tokens=True) == ""


def test_the_chat_template_is_converted(loaded: PreTrainedTokenizerBase) -> None:
    text = loaded.apply_chat_template(
        [{"role": "user", "content": "Hi, 你好"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi, 你好<|im_end|>\n<|im_start|>assistant\n"
    ids = loaded(text)["input_ids"]
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 2, 1)
    assert loaded.decode(ids) == text
