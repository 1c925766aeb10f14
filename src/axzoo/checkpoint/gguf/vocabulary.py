"""tokenizer.json and related files from the metadata of a GGUF file: vocabulary, special tokens, chat template."""

from __future__ import annotations

from math import isfinite
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from axzoo.checkpoint.gguf.byte_level import RULES, byte_level
from axzoo.checkpoint.gguf.reader import GgufCheckpoint
from axzoo.checkpoint.gguf.scored_pieces import CONTROL, UNKNOWN, USER_DEFINED, scored_pieces
from axzoo.core.errors import AxzooError

_MAX_PIECE, _MAX_CHARACTERS = 512, 1 << 23
"""Limits for pieces with scores, since a piece can be cut anywhere. Llama-2's have at most 16, and 200,000 in total."""


def has_tokenizer(gguf: GgufCheckpoint) -> bool:
    """Whether the file has a vocabulary."""
    return gguf.metadata.get("tokenizer.ggml.model", "none") not in ("none", "no_vocab")


def build_tokenizer(gguf: GgufCheckpoint) -> Tokenizer:
    """The tokenizer of tokenizer.json. Raises AxzooError for an unsupported kind, or a damaged vocabulary."""
    model = _get(gguf, "model", str)
    tokens, kinds = _strings(gguf, "tokens"), _get(gguf, "token_type", list)
    if len(set(tokens)) != len(tokens):
        raise AxzooError(f"{gguf.path} has a duplicate token: the file is damaged")
    if len(kinds) != len(tokens):
        raise AxzooError(f"{gguf.path} has {len(kinds)} token types for {len(tokens)} tokens: the file is damaged")
    if model == "gpt2":
        tokenizer, add_bos = _byte_level(gguf, tokens)
    elif model == "llama":
        tokenizer, add_bos = _scored_pieces(gguf, tokens, kinds), True
    else:
        raise AxzooError(f"{gguf.path} has tokenizer {model!r}, but axzoo converts only 'gpt2' and 'llama'")
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind != USER_DEFINED, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (CONTROL, UNKNOWN, USER_DEFINED)
        ]
    )
    _add_ends(gguf, tokenizer, _flag(gguf, "add_bos_token", add_bos), _flag(gguf, "add_eos_token", False))
    return tokenizer


def _byte_level(gguf: GgufCheckpoint, tokens: list[str]) -> tuple[Tokenizer, bool]:
    """The tokenizer, and whether it adds a bos token unless the file says otherwise."""
    pre = _get(gguf, "pre", str)
    if pre not in RULES:
        raise AxzooError(
            f"{gguf.path} has tokenizer 'gpt2' with pre-tokenizer {pre!r}, but axzoo converts only "
            f"{', '.join(map(repr, RULES))}"
        )
    if _flag(gguf, "add_space_prefix", False):
        raise AxzooError(f"{gguf.path} sets tokenizer.ggml.add_space_prefix, which axzoo does not convert for 'gpt2'")
    pairs = []
    for merge in _strings(gguf, "merges"):
        pair = merge.split(" ")
        if len(pair) != 2:
            raise AxzooError(f"{gguf.path} has a merge that is not a pair, {merge!r:.80}: the file is damaged")
        pairs.append((pair[0], pair[1]))
    try:
        tokenizer = byte_level(RULES[pre], {token: index for index, token in enumerate(tokens)}, pairs)
    except Exception as error:  # the library raises bare Exceptions, e.g. for a merge outside the vocabulary
        raise AxzooError(f"{gguf.path} has merges that do not fit its tokens ({error}): the file is damaged") from None
    return tokenizer, RULES[pre].add_bos


def _scored_pieces(gguf: GgufCheckpoint, tokens: list[str], kinds: list[Any]) -> Tokenizer:
    scores = _get(gguf, "scores", list)
    if len(scores) != len(tokens) or not all(isinstance(score, float) and isfinite(score) for score in scores):
        raise AxzooError(
            f"{gguf.path} must have a finite score for each of its {len(tokens)} tokens: the file is damaged"
        )
    if max(map(len, tokens), default=0) > _MAX_PIECE or sum(map(len, tokens)) > _MAX_CHARACTERS:
        raise AxzooError(
            f"{gguf.path} has a token of more than {_MAX_PIECE} characters, or tokens of more than {_MAX_CHARACTERS} "
            f"characters in total: the file is damaged"
        )
    return scored_pieces(tokens, scores, kinds, _flag(gguf, "add_space_prefix", True))


def _add_ends(gguf: GgufCheckpoint, tokenizer: Tokenizer, add_bos: bool, add_eos: bool) -> None:
    """Make the tokenizer add its bos and eos token to a text. A file without such a token adds none."""
    named = special_tokens_map(gguf)
    before = ["bos_token"] if add_bos and "bos_token" in named else []
    after = ["eos_token"] if add_eos and "eos_token" in named else []
    if before or after:
        tokens = [(name, named[name], tokenizer.token_to_id(named[name])) for name in (*before, *after)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            special_tokens=[{"id": name, "ids": [index], "tokens": [token]} for name, token, index in tokens],
        )


def tokenizer_config(gguf: GgufCheckpoint, max_length: int) -> dict[str, Any]:
    """tokenizer_config.json: class, named special tokens, chat template; transformers reads tokenizer.json as it is."""
    config: dict[str, Any] = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special_tokens_map(gguf),
    }
    template = gguf.metadata.get("tokenizer.chat_template")
    return config | ({"chat_template": template} if isinstance(template, str) else {})


def special_tokens_map(gguf: GgufCheckpoint) -> dict[str, str]:
    """special_tokens_map.json. Raises AxzooError for a special token outside the vocabulary."""
    tokens = _strings(gguf, "tokens")
    named = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    found = {}
    for name, word in named.items():
        index = gguf.metadata.get(f"tokenizer.ggml.{word}_token_id")
        if index is None:
            continue
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            raise AxzooError(
                f"{gguf.path}: {name} has index {index!r}, but there are {len(tokens)} tokens: the file is damaged"
            )
        found[name] = tokens[index]
    return found


def _strings(gguf: GgufCheckpoint, key: str) -> list[str]:
    values: list[str] = _get(gguf, key, list)
    if not all(isinstance(value, str) for value in values):
        raise AxzooError(f"{gguf.path}: tokenizer.ggml.{key} contains values that are not strings: the file is damaged")
    return values


def _get(gguf: GgufCheckpoint, key: str, kind: type) -> Any:
    value = gguf.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, kind):
        raise AxzooError(f"{gguf.path}: tokenizer.ggml.{key} is missing or not a {kind.__name__}")
    return value


def _flag(gguf: GgufCheckpoint, key: str, default: bool) -> bool:
    value = gguf.metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool):
        raise AxzooError(f"{gguf.path}: tokenizer.ggml.{key} is {value!r:.80}, but must be true or false")
    return value
