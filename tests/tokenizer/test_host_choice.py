"""Which tokenizer.txt a bundle gets: the vocabulary, the special tokens, the choice, and what is said of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from piece_models import configure, special
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from axzoo.tokenizer.host_choice import agreement, choose, take_samples, variants, write_tokenizer_txt
from axzoo.tokenizer.host_tokenizer import host_tokenizer
from axzoo.tokenizer.host_vocabulary import host_vocabulary
from axzoo.tokenizer.local import LocalTokenizer, load_tokenizer
from axzoo.tokenizer.sample_texts import CONVERSATIONS, TEXTS
from axzoo.tokenizer.tokenizer_txt import Kind, NotAvailable, parse

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ROWS = 4096


def _texts() -> list[str]:
    return [text for listed in TEXTS.values() for text in listed]


def _save(library: Tokenizer, folder: Path, **config: Any) -> LocalTokenizer:
    library.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": CHATML, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder)


def _byte_level(folder: Path, expression: str | None, **config: Any) -> LocalTokenizer:
    """A byte-level BPE that divides texts by an expression, or as SmolLM2 does."""
    library = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if expression is not None:
        steps = [pre_tokenizers.Split(Regex(expression), "isolated")]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    library.pre_tokenizer = pre_tokenizers.Sequence(steps)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(_texts() * 2, trainer)
    library.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    library.add_tokens([AddedToken("<think>", special=False, normalized=False), AddedToken("  🙂", normalized=False)])
    return _save(library, folder, **config)


@pytest.fixture(scope="module")
def like_qwen(tmp_path_factory: pytest.TempPathFactory) -> LocalTokenizer:
    return _byte_level(tmp_path_factory.mktemp("qwen"), QWEN2)


@pytest.fixture(scope="module")
def like_smollm(tmp_path_factory: pytest.TempPathFactory) -> LocalTokenizer:
    return _byte_level(tmp_path_factory.mktemp("smollm"), None, bos_token="<|im_start|>")


def test_a_tokenizer_that_divides_texts_as_a_family_does_needs_no_repair(like_qwen: LocalTokenizer) -> None:
    found = choose(like_qwen, ROWS, [like_qwen.eos_token_id])
    assert (found.txt.kind, found.txt.family, found.variant.repairs) == (Kind.MERGES, 2, ())
    assert found.agreement.mean == 1
    assert found.agreement.equal_chats == found.agreement.chats == len(CONVERSATIONS)
    assert found.older.mean < 1
    assert found.to_dict()["differs"] == []


def test_digits_in_groups_of_three_are_family_3(tmp_path: Path) -> None:
    tokenizer = _byte_level(tmp_path, QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|"))
    assert choose(tokenizer, ROWS, []).txt.family == 3


def test_repairs_are_chosen_by_measuring(like_smollm: LocalTokenizer) -> None:
    found = choose(like_smollm, ROWS, [])
    vocabulary = host_vocabulary(like_smollm, ROWS, [])
    samples = take_samples(like_smollm, TEXTS, CONVERSATIONS)
    base = host_tokenizer(vocabulary.txt)
    measured = [agreement(base.changed(v.special, v.family), samples) for v in variants(vocabulary)]
    assert max((m.equal_chats, m.mean) for m in measured) == (found.agreement.equal_chats, found.agreement.mean)
    assert found.variant.repairs[:2] == ("newline", "indentation")
    unrepaired = measured[0]
    assert found.agreement.equal_chats > unrepaired.equal_chats
    assert found.agreement.shares["code"] > 0.97 > unrepaired.shares["code"]


def test_the_file_does_what_was_measured(like_smollm: LocalTokenizer) -> None:
    found = choose(like_smollm, ROWS, [])
    samples = take_samples(like_smollm, TEXTS, CONVERSATIONS)
    txt = parse(found.txt.to_bytes(), "t")
    assert agreement(host_tokenizer(txt), samples) == found.agreement
    assert agreement(host_tokenizer(txt, old_host=True), samples) == found.older


def test_only_added_tokens_and_white_space_with_a_newline_are_special(like_smollm: LocalTokenizer) -> None:
    host = host_tokenizer(choose(like_smollm, ROWS, []).txt)
    texts = [text.decode() for text in host.special.ranked]
    assert texts[:4] == ["<|im_start|>", "<|im_end|>", "<think>", "  🙂"]  # longest first
    assert all(text.isspace() and text.startswith("\n") for text in texts[4:])
    assert texts[4:] == sorted(texts[4:], key=len, reverse=True) != []


def test_the_bytes_are_the_same_every_time(like_qwen: LocalTokenizer) -> None:
    one, other = (choose(load_tokenizer(like_qwen.folder), ROWS, [3]) for _ in range(2))
    assert one.txt.to_bytes() == other.txt.to_bytes()
    assert one.to_dict() == other.to_dict()


# Vocabulary


def test_ids_without_a_token_have_an_empty_one(like_qwen: LocalTokenizer, tmp_path: Path) -> None:
    definition = json.loads((like_qwen.folder / "tokenizer.json").read_text())
    count = len(definition["model"]["vocab"])
    definition["model"]["vocab"] |= {"<late>": count + 9}
    definition["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    tokenizer = load_tokenizer(tmp_path)
    txt = choose(tokenizer, ROWS, []).txt
    assert txt.tokens[count : count + 10] == (b"",) * 9 + (b"<late>",)
    assert host_tokenizer(txt).decode([count]) == b""


def test_tokens_beyond_the_embedding_are_left_out(like_qwen: LocalTokenizer) -> None:
    last = like_qwen.vocab_size - 1
    txt = choose(like_qwen, last, [last, 5]).txt
    assert len(txt.tokens) == last
    assert last not in txt.special and txt.stop == (5,)


def test_vocab_json_and_merges_txt_give_the_same_file(tmp_path: Path, like_qwen: LocalTokenizer) -> None:
    model = json.loads((like_qwen.folder / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]
    (tmp_path / "merges.txt").write_text("\n".join(lines))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    txt = choose(load_tokenizer(tmp_path), ROWS, []).txt
    expected = choose(like_qwen, ROWS, []).txt
    count = len(model["vocab"])
    assert (txt.family, txt.merges, txt.tokens[:count]) == (2, expected.merges, expected.tokens[:count])
    assert txt.tokens[count:] == (b"<|endoftext|>",)


# Kind 0


def test_pieces(llama_model: Path) -> None:
    tokenizer = load_tokenizer(llama_model)
    size = tokenizer.vocab_size
    found = choose(tokenizer, size + 3, tokenizer.eos_token_ids)
    assert found.txt.kind == Kind.PIECES
    assert found.txt.tokens[size:] == tuple(f"<unused{size + n}>".encode() for n in range(3))
    assert found.txt.types[size:] == (5, 5, 5)
    assert [found.txt.tokens[i] for i in found.txt.special] == [b"<unk>", b"</s>", b"<s>"]
    (note,) = found.to_dict()["notes"]
    assert note.startswith("the model expects a blank before every text") and "english 1.0000" in note
    assert found.agreement.shares["english"] < 1


def test_user_defined_pieces_and_added_tokens_are_special(tmp_path: Path, llama_model: Path) -> None:
    shutil.copyfile(llama_model / "tokenizer.model", tmp_path / "tokenizer.model")
    size = load_tokenizer(llama_model).vocab_size
    configure(
        tmp_path,
        tokenizer_class="LlamaTokenizer",
        legacy=True,
        added_tokens_decoder={**special(1, "<s>"), **special(2, "</s>"), **special(size + 4, "<image>")},
    )
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((tmp_path / "tokenizer.model").read_bytes())
    model.pieces.add(piece="<用户>", score=0.0, type=4)
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    tokenizer = load_tokenizer(tmp_path)
    host = host_tokenizer(choose(tokenizer, size + 10, []).txt)
    ids = host.encode("<用户>好<image>", with_prefix=False)
    assert (ids[0], ids[-1]) == (size, size + 4)
    assert host.decode(ids).decode() == "<用户>好<image>"


# Not available


def _unigram(folder: Path) -> None:
    Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)], unk_id=0)).save(str(folder / "tokenizer.json"))


def _word_piece(folder: Path) -> None:
    Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))


def _suffixes(folder: Path) -> None:
    Tokenizer(models.BPE({"a": 0, "a</w>": 1}, [], end_of_word_suffix="</w>")).save(str(folder / "tokenizer.json"))


def _whole_words(folder: Path) -> None:
    library = Tokenizer(models.BPE({"a": 0}, []))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.save(str(folder / "tokenizer.json"))


def _few_with_meta(folder: Path) -> None:
    library = Tokenizer(models.BPE({"a": 0, "▁": 1}, []))
    library.normalizer = normalizers.Replace(" ", "▁")
    library.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_unigram, "hosts do not know the tokenizer model Unigram"),
        (_word_piece, "hosts do not know the tokenizer model WordPiece"),
        (_suffixes, "hosts do not know the end_of_word_suffix '</w>'"),
        (_whole_words, "its BPE works neither on bytes nor with ▁ for blanks, and hosts know only these two"),
        (
            _few_with_meta,
            "its BPE works with ▁ for blanks, but hosts take so small a vocabulary for one of bytes",
        ),
    ],
)
def test_the_reason_why_there_is_none(make: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "tokenizer.txt"
    assert write_tokenizer_txt(path, load_tokenizer(tmp_path), ROWS, []) == {"not_available": reason}
    assert path.read_text() == f"not available: {reason}\n"


def test_a_unigram_model_of_sentencepiece_has_none(minicpm_model: Path) -> None:
    with pytest.raises(NotAvailable, match=r"its tokenizer\.model is not a BPE"):
        choose(load_tokenizer(minicpm_model), ROWS, [])


def test_a_model_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.txt"
    assert write_tokenizer_txt(path, None, ROWS, []) == {"not_available": "the model has no tokenizer"}
    assert path.read_text() == "not available: the model has no tokenizer\n"


# Prefix ids


def _with_template(tokenizer: LocalTokenizer, folder: Path, template: str | None, bos: str) -> LocalTokenizer:
    shutil.copyfile(tokenizer.folder / "tokenizer.json", folder / "tokenizer.json")
    config = {"bos_token": bos, **({} if template is None else {"chat_template": template})}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


def test_a_first_token_of_the_whole_conversation_is_a_prefix(like_qwen: LocalTokenizer, tmp_path: Path) -> None:
    tokenizer = _with_template(like_qwen, tmp_path, "{{ bos_token }}" + CHATML, "<think>")
    bos = tokenizer.bos_token_id
    assert choose(tokenizer, ROWS, []).txt.prefix == (bos,)
    assert choose(tokenizer, ROWS, [], writes_bos=True).txt.prefix == ()  # the host's template writes it


def test_a_first_token_of_every_message_is_none(like_smollm: LocalTokenizer) -> None:
    assert like_smollm.encode_chat([{"role": "user", "content": "?"}])[0] == like_smollm.bos_token_id
    assert choose(like_smollm, ROWS, []).txt.prefix == ()


def test_without_chat_template_the_prefix_is_what_a_text_begins_with(llama_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(llama_model)
    assert choose(tokenizer, ROWS, [], chat=False).txt.prefix == (tokenizer.bos_token_id,)


def test_a_flag_of_an_added_token_that_hosts_do_not_know_is_noted(like_qwen: LocalTokenizer, tmp_path: Path) -> None:
    library = Tokenizer.from_file(str(like_qwen.folder / "tokenizer.json"))
    library.add_special_tokens([AddedToken("<|end|>", rstrip=True)])
    found = choose(_save(library, tmp_path), ROWS, [])
    assert found.notes == ("added tokens have rstrip, which hosts do not know",)
