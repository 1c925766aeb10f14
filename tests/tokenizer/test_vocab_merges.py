"""vocab.json and merges.txt without a tokenizer.json, compared with transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.local import load_tokenizer

CORPUS = [
    "The capital of France is Paris. The quick brown fox jumps over the lazy dog, 1234567890 times!",
    "Hello, world! How are you? I'm fine, thank you; you're welcome.\n\n\tdef main():\n    return 42",
    "法国的首都是巴黎。今天天气很好。我们去公园吧。 emoji 😀😁 naïve café Ünïcödé",
] * 4
TEXTS = [
    "",
    "  two  spaces \n\n\t tabs ",
    "I'M he'll 1234567890 x2 3.14",
    "nai\u0308ve 法国的首都是巴黎。 😀 \u200b\u0301",
    "<|im_start|>user\nx<|im_end|> in the<|endoftext|>text <think>",
]
LISTED: dict[str, Any] = {
    "added_tokens.json": {"<|im_start|>": 401, "<|im_end|>": 402, "<think>": 403},
    "special_tokens_map.json": {"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE in the two files, with <|endoftext|> as its last token, as slow tokenizers are saved."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(vocabulary | {"<|endoftext|>": len(vocabulary)}))
    assert (folder / "merges.txt").read_text().startswith("#version") and len(vocabulary) == 400
    return folder


def _folder(saved: Path, folder: Path, files: dict[str, Any]) -> Path:
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((saved / name).read_bytes())
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("files", [{}, LISTED], ids=["alone", "with tokens"])
@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_class": "GPT2Tokenizer"},
        {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True, "eos_token": "<|im_end|>"},
        {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "<|endoftext|>"},
        {"tokenizer_class": "CodeGenTokenizer", "pad_token": "<pad>"},
        {"tokenizer_class": "Qwen2Tokenizer"},
        {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": {"401": {"content": "<think>"}}},
        {"tokenizer_class": "Qwen2TokenizerFast", "bos_token": None, "additional_special_tokens": ["<|im_end|>"]},
    ],
)
def test_ids_are_those_of_transformers(
    saved: Path, tmp_path: Path, config: dict[str, Any], files: dict[str, Any]
) -> None:
    folder = _folder(saved, tmp_path, files | {"tokenizer_config.json": config})
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.vocab_size == len(theirs)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "phi"])
def test_the_model_type_says_which_rules_apply(
    saved: Path, tmp_path: Path, model_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    rules = "CodeGenTokenizer" if model_type == "phi" else "Qwen2Tokenizer"
    expected = load_tokenizer(_folder(saved, tmp_path, {"tokenizer_config.json": {"tokenizer_class": rules}}))
    _folder(
        saved, tmp_path, {"tokenizer_config.json": {"tokenizer_class": None}, "config.json": {"model_type": model_type}}
    )
    assert [load_tokenizer(tmp_path).encode(text) for text in TEXTS] == [expected.encode(text) for text in TEXTS]
    assert not caplog.records


def test_unknown_rules_are_those_of_gpt2_with_a_warning(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    folder = _folder(saved, tmp_path, {"tokenizer_config.json": config, "config.json": {"model_type": "llama"}})
    ids = load_tokenizer(folder).encode("I'M he'll 12")
    assert "rules of GPT-2" in caplog.text
    _folder(saved, tmp_path, {"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer"}})
    assert ids == load_tokenizer(folder).encode("I'M he'll 12")


def test_tokenizer_json_comes_first(saved: Path, tmp_path: Path) -> None:
    folder = _folder(saved, tmp_path, {})
    Tokenizer(models.BPE({"a": 0}, [])).save(str(folder / "tokenizer.json"))
    assert load_tokenizer(folder).vocab_size == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", b"[]", "must map tokens to their ids"),
        ("vocab.json", b'{"a": -1}', "must map tokens to their ids"),
        ("vocab.json", b"{}", r"merges\.txt does not fit vocab\.json"),
        ("merges.txt", b"#version: 0.2\na b c\n", "a line that is not a pair of tokens, 'a b c'"),
        ("merges.txt", "a 法".encode("gbk"), "is not UTF-8"),
        ("merges.txt", "法 国".encode(), r"merges\.txt does not fit vocab\.json"),
    ],
)
def test_damaged_files_are_refused(saved: Path, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    folder = _folder(saved, tmp_path, {})
    (folder / name).write_bytes(content)
    with pytest.raises(AxzooError, match=message):
        load_tokenizer(folder)


def test_an_empty_vocabulary_and_a_link_to_nothing_are_refused(saved: Path, tmp_path: Path) -> None:
    folder = _folder(saved, tmp_path, {})
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(AxzooError, match=r"vocab\.json has no tokens: its vocabulary is empty"):
        load_tokenizer(folder)
    (folder / "merges.txt").unlink()
    (folder / "merges.txt").symlink_to("blobs/0123")
    with pytest.raises(AxzooError, match=r"merges\.txt is not a file, or a link to nothing"):
        load_tokenizer(folder)
