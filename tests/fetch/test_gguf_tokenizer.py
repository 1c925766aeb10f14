"""The converted tokenizer compared with the original, and with a plain BPE that uses llama.cpp's regexes."""

import json
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tiny_gguf import CORPUS, SPECIAL, Tiny
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from axzoo.checkpoint.gguf.conversion import convert
from axzoo.tokenizer.local import load_tokenizer

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SMOLLM = (r"\p{N}|[^\p{N}]+", WORDS)
"""llama.cpp, src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM: first single \\p{N}, then GPT-2's words."""
_ENDINGS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = (_ENDINGS + r"\p{N}{1,3}" + _REST,), (_ENDINGS + r"\p{N}" + _REST,)
"""LLAMA_VOCAB_PRE_TYPE_LLAMA3 and LLAMA_VOCAB_PRE_TYPE_QWEN2, each followed by itself."""


def byte_characters() -> dict[int, str]:
    """GPT-2's bytes_to_unicode."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + rank) for rank, byte in enumerate(others)}


def plain_bpe(
    text: str,
    vocabulary: dict[str, int],
    merges: list[list[str]],
    patterns: Sequence[str] = SMOLLM,
    whole: bool = False,
) -> list[int]:
    """A slow byte-level BPE: in each word, apply the earliest-learned merge first, leftmost first.

    Each of `patterns` splits the pieces of the one before. With `whole`, a word that is a token is not split.
    """
    ranks, characters = {tuple(pair): rank for rank, pair in enumerate(merges)}, byte_characters()
    ids: list[int] = []
    for piece in regex.findall(patterns[0], text):
        for word in regex.findall(patterns[-1], piece):
            parts = [characters[byte] for byte in word.encode()]
            if whole and "".join(parts) in vocabulary:
                parts = ["".join(parts)]
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


TEXTS = [
    "I'M in 1969, x2 = 3.14159 and ½ of ٣٤",
    "they'RE  there\n\n it's\t\r\nthe cat's the",
    "你好、世界 naïve 12345",
]


@pytest.mark.parametrize(
    ("pre", "patterns", "whole", "begins"),
    [
        ("llama-bpe", LLAMA3, True, True),
        ("qwen2", QWEN2, False, False),
        ("gpt-2", (WORDS,), False, False),
        ("smollm", SMOLLM, False, False),
    ],
)
def test_other_rules_agree_with_plain_bpe(
    tiny: Tiny, model: dict[str, Any], tmp_path: Path, pre: str, patterns: tuple[str, ...], whole: bool, begins: bool
) -> None:
    (tmp_path / "checkpoint").mkdir()
    changes = {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": None}
    convert(tiny.write(tmp_path / "tiny.gguf", changes), tmp_path / "checkpoint")
    ours, theirs = load_tokenizer(tmp_path / "checkpoint"), AutoTokenizer.from_pretrained(tmp_path / "checkpoint")
    for text in TEXTS:
        ids = plain_bpe(text, model["vocab"], model["merges"], patterns, whole)
        assert ours.encode(text) == theirs.encode(text) == [*([1] if begins else []), *ids]
        assert ours.decode(ids) == text


@pytest.mark.parametrize(("begin", "end"), [(True, False), (False, True), (True, True)])
def test_bos_and_eos_are_added_as_the_file_says(tiny: Tiny, tmp_path: Path, begin: bool, end: bool) -> None:
    (tmp_path / "checkpoint").mkdir()
    changes = {"tokenizer.ggml.add_bos_token": begin, "tokenizer.ggml.add_eos_token": end}
    convert(tiny.write(tmp_path / "tiny.gguf", changes), tmp_path / "checkpoint")
    for tokenizer in (load_tokenizer(tmp_path / "checkpoint"), AutoTokenizer.from_pretrained(tmp_path / "checkpoint")):
        ids = tokenizer.encode("the cat")
        assert (ids[0] == 1, ids[-1] == 2) == (begin, end)
        assert len(ids) == len(tiny.tokenizer.encode("the cat").ids) + begin + end
        text = tokenizer.encode("<|im_start|>the", add_special_tokens=False)
        assert text[0] == 1 and text.count(1) == 1


def _scored(tiny: Tiny, folder: Path, **changes: Any) -> tuple[Path, SentencePieceProcessor]:
    """A GGUF file with the pieces of a SentencePiece model, as llama.cpp's converter writes them."""
    (folder / "corpus.txt").write_text("\n".join(CORPUS * 20))
    SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "pieces"),
        model_type="bpe",
        vocab_size=310,
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        user_defined_symbols=["<tool>"],
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    pieces = SentencePieceProcessor(model_file=str(folder / "pieces.model"))
    ids = range(pieces.get_piece_size())
    kinds = {pieces.unk_id(): 2, pieces.bos_id(): 3, pieces.eos_id(): 3, pieces.piece_to_id("<tool>"): 4}
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.tokens": [pieces.id_to_piece(index) for index in ids],
        "tokenizer.ggml.scores": [pieces.get_score(index) for index in ids],
        "tokenizer.ggml.token_type": [6 if pieces.is_byte(index) else kinds.get(index, 1) for index in ids],
        "tokenizer.ggml.bos_token_id": pieces.bos_id(),
        "tokenizer.ggml.eos_token_id": pieces.eos_id(),
        "tokenizer.ggml.padding_token_id": None,
        "tokenizer.ggml.unknown_token_id": pieces.unk_id(),
        "tokenizer.ggml.add_bos_token": None,
    }
    (folder / "checkpoint").mkdir()
    convert(tiny.write(folder / "tiny.gguf", metadata | changes), folder / "checkpoint")
    return folder / "checkpoint", pieces


def test_scored_pieces_give_the_ids_of_sentencepiece(tiny: Tiny, tmp_path: Path) -> None:
    folder, pieces = _scored(tiny, tmp_path)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    words = ["the ", "theory", " cat", "  ", "1234", "naïve", "你好", "🦜", "\n", "they're", "x", "▁"]
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices(words, k=rng.randrange(8)))
        expected = [1, *pieces.encode(text)] if text else [1]
        assert ours.encode(text) == expected == theirs.encode(text), text
        assert ours.decode(expected[1:]) == pieces.decode(expected[1:])
    tool = pieces.piece_to_id("<tool>")
    assert ours.encode("the</s> cat<tool>") == [1, *pieces.encode("the"), 2, *pieces.encode(" cat"), tool]
    assert ours.decode([1, *pieces.encode("the cat"), 2]) == "the cat"


def test_scored_pieces_without_a_space_before_the_text(tiny: Tiny, tmp_path: Path) -> None:
    changes = {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    folder, pieces = _scored(tiny, tmp_path, **changes)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("▁the cat") == pieces.encode("the cat") != tokenizer.encode("the cat")
    assert tokenizer.decode(tokenizer.encode(" the cat")) == " the cat"
