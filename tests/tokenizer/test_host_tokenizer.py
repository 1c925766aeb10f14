"""The model of the host's tokenizer, compared with the libraries whose rules it shares; and where it differs."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.host_tokenizer import HostTokenizer, host_tokenizer
from axzoo.tokenizer.host_words import in_byte_alphabet, split_words
from axzoo.tokenizer.tokenizer_txt import Kind, TokenizerTxt

CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
FAMILIES = {
    1: rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}",
    2: rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}",
    3: rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}",
    4: rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}",
}
"""The expressions of published tokenizers: Qwen3.5, Qwen2, Llama-3 and GLM, o200k."""

CASELESS = "漢あعहि한ªʰ\u0301\u093f"
CHARACTERS = CASELESS + "aZéÉßдДǅ07٣²½Ⅷ \t\n\r\u00a0\u3000'.,/_-<>|「😀\u200dstrevmdlSTREVMDL"
TEXTS = st.text(st.sampled_from(CHARACTERS), max_size=30) | st.lists(
    st.sampled_from(["'s", "'LL", " 'd", "\n\n", "  ", "\n    ", "Word", "12345", "。\n", "//\n/", "x"])
).map("".join)


@pytest.mark.parametrize("family", [1, 2, 3])
@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_families_divide_texts_as_published_tokenizers_do(family: int, text: str) -> None:
    assert words(text, family) == published(text, family)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from(sorted(set(CHARACTERS) - set(CASELESS))), max_size=30))
def test_family_4_divides_texts_as_o200k_does(text: str) -> None:
    assert words(text, 4) == published(text, 4)


def test_family_4_differs_from_o200k_where_letters_without_case_come_before_capitals() -> None:
    assert published("漢A", 4) == ["漢", "A"]
    assert words("漢A", 4) == ["漢A"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I've 12 cats", ["I", "'ve", " 12", " cats"]),
        ("IT'S", ["IT", "'", "S"]),
        ("a  b\n\nc", ["a", "  ", "b", "\n\n", "c"]),
        ("snake_case _x __init__()", ["snake", "_", "case", " ", "_", "x", " ", "_", "_", "init", "_", "_()"]),
        ("é, 漢字。", ["é,", " 漢字。"]),
        ("naïve", ["na", "ï", "ve"]),
    ],
)
def test_family_0_knows_only_ascii(text: str, expected: list[str]) -> None:
    assert words(text, 0) == expected


@given(st.binary(max_size=20), st.integers(0, 4))
def test_words_are_the_text(text: bytes, family: int) -> None:
    assert b"".join(split_words(text, family)) == text


def words(text: str, family: int) -> list[str]:
    return [word.decode() for word in split_words(text.encode(), family)]


def published(text: str, family: int) -> list[str]:
    return [word for word, _ in pre_tokenizers.Split(Regex(FAMILIES[family]), "isolated").pre_tokenize_str(text)]


# Kind 3, with bytes


@cache
def trained(family: int) -> tuple[Tokenizer, HostTokenizer]:
    """A byte-level BPE and the host's reading of it."""
    library = Tokenizer(models.BPE())
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(FAMILIES[family]), "isolated"), bytes_])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(
        ["the cat's whiskers, 1234 \n\n    été Été 漢字 дДд <|end|>"] * 3 + [CHARACTERS] * 2, trainer
    )
    library.add_special_tokens(["<|end|>", "<|end|>\n", " <|"])
    return library, host_tokenizer(written(library, family))


def written(library: Tokenizer, family: int = 0) -> TokenizerTxt:
    """The library's vocabulary as a tokenizer.txt."""
    model = json.loads(library.to_str())["model"]
    tokens = {index: token.encode() for token, index in model["vocab"].items()}
    added = {index: token.content for index, token in library.get_added_tokens_decoder().items()}
    tokens |= {index: in_byte_alphabet(text.encode()).encode() for index, text in added.items()}
    special = sorted(added, key=lambda index: -len(added[index]))
    merges = tuple((left.encode(), right.encode()) for left, right in model["merges"])
    return TokenizerTxt(
        Kind.MERGES, tuple(special), (), (), tuple(tokens[i] for i in sorted(tokens)), merges=merges, family=family
    )


@pytest.mark.parametrize("family", [1, 2, 3])
@settings(max_examples=200, deadline=None)
@given(parts=st.lists(TEXTS | st.sampled_from(["<|end|>", "<|end|>\n", " <|", "<|"]), max_size=4))
def test_byte_level_bpe_yields_the_ids_of_the_library(family: int, parts: list[str]) -> None:
    library, host = trained(family)
    text = "".join(parts)
    ids = library.encode(text).ids
    assert host.encode(text) == ids
    assert host.decode(ids).decode() == text


def test_an_older_host_ignores_the_family() -> None:
    library, host = trained(2)
    txt = written(library, 2)
    older = host_tokenizer(txt, old_host=True)
    assert older.encode("été 12") == host_tokenizer(replace(txt, family=0)).encode("été 12") != host.encode("été 12")


# Special tokens


SMALL = TokenizerTxt(
    Kind.MERGES,
    special=(3, 4, 5, 7),
    stop=(),
    prefix=(1, 1),
    tokens=(b"a", b"b", b"c", b"", b"ab", b"abc", "Ġa".encode(), "é<".encode()),
    merges=((b"a", b"b"),),
)


def test_the_first_of_the_list_wins_and_a_token_without_text_is_never_found() -> None:
    assert host_tokenizer(SMALL).encode("abcab") == [1, 1, 4, 2, 4]
    assert host_tokenizer(replace(SMALL, special=(5, 4))).encode("abcab") == [1, 1, 5, 4]
    twice = replace(SMALL, tokens=(*SMALL.tokens, b"ab"))
    assert host_tokenizer(replace(twice, special=(8, 4), prefix=())).encode("ab") == [8]


def test_prefix_ids_are_put_before_every_text() -> None:
    host = host_tokenizer(SMALL)
    assert host.encode("") == [1, 1]
    assert host.encode("a", with_prefix=False) == [0]


def test_a_special_token_outside_the_byte_alphabet_is_found_without_those_characters() -> None:
    """So axzoo writes added tokens in the byte alphabet."""
    txt = replace(SMALL, tokens=("\uff5ca".encode(), b"b"), special=(0,), prefix=())
    assert host_tokenizer(txt).encode("ab") == [0, 1]
    txt = replace(txt, tokens=(in_byte_alphabet("\uff5ca".encode()).encode(), b"b"))
    assert host_tokenizer(txt).encode("\uff5cab") == [0, 1]


def test_the_host_drops_the_rest_of_a_word_with_a_byte_that_the_vocabulary_lacks() -> None:
    assert host_tokenizer(replace(SMALL, special=(), prefix=())).encode("axb,ba cba") == [0, 1, 0]


def test_printed_text_has_white_space_for_the_letters_of_the_byte_alphabet() -> None:
    letters = "Ġa Ċ ĉ ▁"
    txt = TokenizerTxt(Kind.MERGES, (), (), (), (in_byte_alphabet(letters.encode()).encode(),))
    assert host_tokenizer(txt).decode([0]).decode() == " a \n \t  "


def test_ids_outside_the_vocabulary_of_kind_3_have_no_text_and_those_of_kind_0_are_an_error() -> None:
    assert host_tokenizer(SMALL).decode([0, 99]) == b"a"
    with pytest.raises(AxzooError, match="id 99 is outside the vocabulary"):
        host_tokenizer(TokenizerTxt(Kind.PIECES, (), (), (), (b"a",), (0.0,), (1,))).decode([99])


def test_other_kinds_are_not_modelled() -> None:
    with pytest.raises(AxzooError, match=r"does not model .* kind 1"):
        host_tokenizer(TokenizerTxt(Kind.TRIE, (), (), (), (b"a",)))


# Kind 3, with "▁"


@cache
def with_meta() -> tuple[Tokenizer, HostTokenizer]:
    library = Tokenizer(models.BPE())
    library.normalizer = normalizers.Replace(" ", "▁")
    library.train_from_iterator(
        ["the cat sat on the mat, at last. 漢字"] * 3, trainers.BpeTrainer(vocab_size=80, show_progress=False)
    )
    model = json.loads(library.to_str())["model"]
    names = [f"<0x{byte:02X}>" for byte in range(256)] + sorted(model["vocab"], key=model["vocab"].get)
    names += [f"▁{number}filler" for number in range(1025)]  # the host recognizes "▁" only in vocabularies of this size
    vocab = {name: index for index, name in enumerate(names)}
    merges = [tuple(pair) for pair in model["merges"]]
    library = Tokenizer(models.BPE(vocab, merges, byte_fallback=True))
    library.normalizer = normalizers.Replace(" ", "▁")
    txt = TokenizerTxt(
        Kind.MERGES,
        (),
        (),
        (),
        tuple(map(str.encode, names)),
        merges=tuple((a.encode(), b.encode()) for a, b in merges),
    )
    return library, host_tokenizer(txt)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["the", " cat", "sat", "  ", "漢", "é", "😀", "\n"]) | st.text(max_size=5)).map("".join)
)
def test_bpe_with_meta_yields_the_ids_of_the_library(text: str) -> None:
    library, host = with_meta()
    ids = library.encode(text).ids
    assert host.encode(text) == ids
    assert host.decode(ids).decode() == text.translate({ord("▁"): " ", ord("Ġ"): " ", ord("Ċ"): "\n", ord("ĉ"): "\t"})


# Kind 0


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.sampled_from(["The ", "fox", "法国", "😀", "x", "  ", "\n"]) | st.text(max_size=8)).map("".join))
def test_pieces_yield_the_ids_of_sentencepiece_for_a_text_after_a_blank(llama_model: Path, text: str) -> None:
    processor, host = _processor(llama_model), _host(llama_model)
    assert host.encode(" " + text if text else "") == processor.encode(text)


@cache
def _processor(folder: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@cache
def _host(folder: Path) -> HostTokenizer:
    processor = _processor(folder)
    ids = range(processor.get_piece_size())
    kinds = [
        2 if processor.is_unknown(i) else 3 if processor.is_control(i) else 6 if processor.is_byte(i) else 1
        for i in ids
    ]
    tokens = tuple(processor.id_to_piece(i).replace("▁", " ").encode() for i in ids)
    scores = tuple(processor.get_score(i) for i in ids)
    return host_tokenizer(TokenizerTxt(Kind.PIECES, (), (), (), tokens, scores, tuple(kinds)))


def test_a_piece_that_is_not_normal_is_found_only_as_a_special_token() -> None:
    tokens, kinds = (b"<unk>", b"a", b"b", b"ab", b"<0x63>"), (2, 1, 1, 4, 6)
    txt = TokenizerTxt(Kind.PIECES, (), (), (), tokens, (0.0,) * 5, kinds)
    assert host_tokenizer(txt).encode("abc") == [1, 2, 4]
    assert host_tokenizer(replace(txt, special=(3,))).encode("abcd") == [3, 4, 0]


def test_the_highest_score_is_merged_first_and_of_equal_ones_the_first_pair() -> None:
    tokens = (b"<unk>", b"a", b"b", b"aa", b"ab", b"aaa")
    txt = TokenizerTxt(Kind.PIECES, (), (), (), tokens, (0.0, 0.0, 0.0, -2.0, -1.0, -3.0), (2, 1, 1, 1, 1, 1))
    assert host_tokenizer(txt).encode("aaab") == [3, 4]
    assert host_tokenizer(txt).encode("aaaa") == [3, 3]
