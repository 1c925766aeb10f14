"""Byte-level BPE tokenizers of GGUF files (tokenizer.ggml.model "gpt2")."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Words of Llama-3 and Qwen2, which differ in how many digits make a word."""


def _gpt2() -> PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm() -> PreTokenizer:
    """Splits digits individually, then words as GPT-2 does."""
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _words(digits: str) -> Callable[[], PreTokenizer]:
    def split() -> PreTokenizer:
        words = pre_tokenizers.Split(Regex(_WORDS % digits), behavior="isolated")
        return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    return split


@dataclass(frozen=True)
class ByteLevelRules:
    """How text is split before BPE, and what llama.cpp does unless the file says otherwise.

    With `ignore_merges`, a word that is a token is not split; with `composed`, text is brought into the form NFC first,
    as in the original tokenizer.
    """

    split: Callable[[], PreTokenizer]
    ignore_merges: bool = False
    composed: bool = False
    add_bos: bool = False


_LLAMA3 = ByteLevelRules(_words(r"\p{N}{1,3}"), ignore_merges=True, add_bos=True)
_QWEN2 = ByteLevelRules(_words(r"\p{N}"), composed=True)
RULES: Mapping[str, ByteLevelRules] = {
    "deepseek-r1-qwen": _QWEN2,
    "gpt-2": ByteLevelRules(_gpt2),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "smollm": ByteLevelRules(_smollm),
}
"""By the value of `tokenizer.ggml.pre`."""


def byte_level(rules: ByteLevelRules, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """A tokenizer without added tokens. Raises what the library raises when merges and vocabulary do not match."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rules.ignore_merges))
    if rules.composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = rules.split()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
