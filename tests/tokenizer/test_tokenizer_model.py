"""tokenizer.model without a tokenizer.json: the rules of Llama-2, MiniCPM and ChatGLM3."""

from __future__ import annotations

import json
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from piece_models import configure, special
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, models, normalizers, processors

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.local import LocalTokenizer, load_tokenizer

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two  spaces \n\n\t tabs ",
    "1234567890 and 3.14",
    "法国的首都是巴黎。",
    "😀 family 👩‍👩‍👧‍👦 flag 🇫🇷",
    "naïve café ﬁ \uff21 ᚠᛇᚻ \u200b\u0301 ▁▁ \ufffd",
    "special <s> in the</s>text <unk><|im_end|>",
    "\x00\x7f control",
]


def _converted(folder: Path) -> Tokenizer:
    """Make an oracle: a BPE of the `tokenizers` library with the same pieces, set up as transformers 4 does."""
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocabulary = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    merges = [
        (vocabulary[piece], (piece[:cut], piece[cut:]))
        for piece in vocabulary
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary and not processor.is_byte(vocabulary[piece])
    ]
    pairs = [pair for _, pair in sorted(merges, key=lambda merge: (merge[0], *map(vocabulary.get, merge[1])))]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.sampled_from(["<s>", "</s>", "<unk>", " ", "The ", "fox", "法国", "😀", "x"]) | st.text(max_size=8)))
def test_llama_yields_the_same_ids_as_its_conversion(llama_model: Path, parts: list[str]) -> None:
    text = "".join(parts)
    assert _once(llama_model).encode(text) == _oracle(llama_model).encode(text).ids


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["llama_model", "minicpm_model", "chatglm_model"])
def test_texts_round_trip(request: pytest.FixtureRequest, kind: str, text: str) -> None:
    tokenizer = load_tokenizer(request.getfixturevalue(kind))
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text.replace("▁", " ")
    stream = tokenizer.stream(skip_special_tokens=False)
    pieces = [*map(stream.push, ids), stream.flush()]
    assert "".join(pieces) == text.replace("▁", " ")
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_minicpm_recognizes_its_listed_tokens(minicpm_model: Path) -> None:
    tokenizer, pieces = load_tokenizer(minicpm_model), _pieces(minicpm_model)
    assert tokenizer.encode("Hello<image></s> 你<|im_end|>") == [
        1, *pieces.encode("Hello"), 1000, 2, *pieces.encode(" 你<|im_end|>"),
    ]  # fmt: skip
    assert tokenizer.decode([1, *pieces.encode("Hello"), 1000, 2, *pieces.encode(" world")]) == "Hello world"
    assert tokenizer.vocab_size == 1001
    assert tokenizer.decode([1001, 700, *pieces.encode("Hello")]) == "Hello"
    user = [{"role": "user", "content": " 你好 "}]
    assert tokenizer.encode_chat(user) == pieces.encode("<用户>你好<AI>")


def test_chatglm_encodes_conversations(chatglm_model: Path) -> None:
    tokenizer, pieces = load_tokenizer(chatglm_model), _pieces(chatglm_model)
    size = pieces.get_piece_size()
    gmask, sop, system, user, assistant = (size + number for number in (1, 3, 5, 6, 7))
    newline = pieces.encode("\n")
    messages = [
        {"role": "system", "content": "简短。"},
        {"role": "user", "content": "<|user|>hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "?"},
    ]
    turns = [
        [role, *newline, *pieces.encode(m["content"])]
        for role, m in zip((system, user, assistant, user), messages, strict=True)
    ]
    assert tokenizer.encode_chat(messages) == [gmask, sop, *chain(*turns), assistant]
    assert tokenizer.encode_chat(messages[:3], add_generation_prompt=False) == [gmask, sop, *chain(*turns[:3])]
    assert tokenizer.encode("sop<|user|>") == [gmask, sop, *pieces.encode("sop<|user|>")]
    assert tokenizer.decode([gmask, sop, *turns[1], assistant]) == "\n<|user|>hi".replace("\n", "\n ")
    assert tokenizer.decode([user, assistant], skip_special_tokens=False) == "<|user|><|assistant|>"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, (2, user, user + 2))
    with pytest.raises(AxzooError, match="one of system, user"):
        tokenizer.encode_chat([{"role": "tool", "content": ""}])


def test_chatglm2_has_no_roles(chatglm_model: Path, tmp_path: Path) -> None:
    folder = _copy(chatglm_model, tmp_path)
    (folder / "config.json").write_text('{"model_type": "chatglm", "_name_or_path": "THUDM/chatglm2-6b"}')
    with pytest.raises(AxzooError, match="no chat template"):
        load_tokenizer(folder).encode_chat([{"role": "user", "content": "?"}])


@pytest.mark.parametrize(
    ("config", "begin", "end"),
    [
        ({}, [1], []),
        ({"add_bos_token": False}, [], []),
        ({"add_bos_token": True, "add_eos_token": True}, [1], [2]),
        ({"bos_token": "</s>"}, [2], []),
    ],
)
def test_tokens_around_a_text(
    llama_model: Path, tmp_path: Path, config: dict[str, Any], begin: list[int], end: list[int]
) -> None:
    tokenizer = load_tokenizer(configure(_copy(llama_model, tmp_path), tokenizer_class="LlamaTokenizer", **config))
    assert tokenizer.encode("Hello") == [*begin, *_pieces(llama_model).encode("Hello"), *end]


def test_tokens_from_older_config_files(llama_model: Path, tmp_path: Path) -> None:
    folder = configure(_copy(llama_model, tmp_path), additional_special_tokens=["<|im_end|>"])
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "added_tokens.json").write_text('{"<|im_start|>": 500, "<|im_end|>": 501}')
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    tokenizer, pieces = load_tokenizer(folder), _pieces(llama_model)
    assert tokenizer.encode("<|im_start|>a<|im_end|>") == [1, 500, *pieces.encode("a"), 501]
    assert tokenizer.decode([500, *pieces.encode("a"), 501]) == "<|im_start|>a"
    assert tokenizer.eos_token_ids == (501,)


def test_an_incomplete_character_is_held_back(llama_model: Path) -> None:
    tokenizer = load_tokenizer(llama_model)
    ids = [tokenizer.backend.token_to_id(f"<0x{byte:02X}>") for byte in "🦜".encode()]
    stream = tokenizer.stream()
    assert [stream.push(index or 0) for index in ids] == ["", "", "", "🦜"]
    assert tokenizer.decode([index or 0 for index in ids[:2]]) == "\ufffd\ufffd"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"legacy": False}, "legacy: false"),
        ({"tokenizer_class": "T5Tokenizer"}, "unsupported tokenizer class"),
        ({"tokenizer_class": ["LlamaTokenizer"]}, "unsupported tokenizer class"),
        ({"added_tokens_decoder": special(5, "<x>", lstrip=True)}, "sets lstrip, rstrip or single_word"),
        ({"added_tokens_decoder": special(-5, "<x>")}, "token ids out of range"),
        ({"added_tokens_decoder": {"5": "<x>"}}, "added_tokens_decoder is not valid"),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder is not valid"),
    ],
)
def test_unsupported_rules_are_refused(llama_model: Path, tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(AxzooError, match=message):
        load_tokenizer(configure(_copy(llama_model, tmp_path), **({"tokenizer_class": "LlamaTokenizer"} | config)))


@pytest.mark.parametrize("config", [None, {}, {"tokenizer_class": None}])
def test_a_file_of_an_unknown_class_is_refused(
    chatglm_model: Path, tmp_path: Path, config: dict[str, Any] | None
) -> None:
    folder = _copy(chatglm_model, tmp_path)
    (folder / "config.json").unlink()
    if config is not None:
        configure(folder, **config)
    with pytest.raises(AxzooError, match=r"add the checkpoint's tokenizer_config\.json .* or its config\.json"):
        load_tokenizer(folder)
    (folder / "config.json").write_text('{"model_type": "minicpm"}')
    with pytest.raises(AxzooError, match="the tokenizer class of"):
        load_tokenizer(folder)
    (folder / "config.json").unlink()
    assert load_tokenizer(folder, "llama").encode("Hello") == [1, *_pieces(folder).encode("Hello")]


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"[]", b"\xff" * 1000])
def test_invalid_model_files_are_refused(llama_model: Path, tmp_path: Path, content: bytes) -> None:
    folder = _copy(llama_model, tmp_path)
    (folder / "tokenizer.model").write_bytes(content)
    with pytest.raises(AxzooError, match=r"tokenizer\.model (is not a SentencePiece model|has no pieces)"):
        load_tokenizer(folder)


def test_added_tokens_json_must_map_to_ids(llama_model: Path, tmp_path: Path) -> None:
    folder = _copy(llama_model, tmp_path)
    (folder / "added_tokens.json").write_text(json.dumps({"<x>": "5"}))
    with pytest.raises(AxzooError, match=r"added_tokens\.json must map tokens to their ids"):
        load_tokenizer(folder)


_cache: dict[tuple[str, Path], Any] = {}


def _once(folder: Path) -> LocalTokenizer:
    tokenizer: LocalTokenizer = _cache.setdefault(("ours", folder), None) or load_tokenizer(folder)
    _cache["ours", folder] = tokenizer
    return tokenizer


def _oracle(folder: Path) -> Tokenizer:
    oracle: Tokenizer = _cache.setdefault(("theirs", folder), None) or _converted(folder)
    _cache["theirs", folder] = oracle
    return oracle


def _pieces(folder: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def _copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "tokenizer"))
