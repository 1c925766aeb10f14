"""Tokenizers read with the `tokenizers` library, which transformers.AutoTokenizer uses too.

transformers itself takes 1.8 s to import, which is too long for a host program.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_bytes
from axzoo.tokenizer.added_tokens import AddedToken, AddedTokens
from axzoo.tokenizer.tokenizer_folder import TokenizerFolder

logger = logging.getLogger(__name__)

_MAX_BYTES = 128 << 20
"""For comparison: Gemma's file, with 262,144 tokens, has 33 MB."""


class TokenizerJson:
    """A backend that uses the `tokenizers` library."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def vocab_size(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def tokens_from(self, first_id: int) -> list[str]:
        found = self._tokenizer.get_vocab(with_added_tokens=True).items()
        return [token for index, token in sorted((index, token) for token, index in found if index >= first_id)]


def load_tokenizer_json(files: TokenizerFolder) -> TokenizerJson:
    """Read a tokenizer.json, and add the tokens of the files beside it.

    Raises AxzooError when it is not valid, has no tokens, or is larger than 128 MiB.
    """
    path = files.path / "tokenizer.json"
    content = read_bytes(path, _MAX_BYTES)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise AxzooError(f"{path} is not a valid tokenizer: {error}") from error
    tokenizer.no_truncation()  # some training scripts leave these settings in the file
    tokenizer.no_padding()
    return complete(tokenizer, files, path)


def complete(tokenizer: Tokenizer, files: TokenizerFolder, path: Path) -> TokenizerJson:
    """Add the tokens that tokenizer_config.json, special_tokens_map.json and added_tokens.json list to `tokenizer`.

    As in transformers, a token that is not in the vocabulary gets the next free id, whatever id a file lists for it.
    `path` is the file with the vocabulary. Raises AxzooError when there are no tokens at all.
    """
    if not tokenizer.get_vocab_size(with_added_tokens=True):
        raise AxzooError(f"{path} has no tokens: its vocabulary is empty")
    tokens = _tokens_to_add(tokenizer, files.tokens)
    tokenizer.add_tokens([_library_token(token) for token in tokens])
    tokenizer.encode_special_tokens = files.config.get("split_special_tokens") is True
    for token in tokens:
        if token.id not in (None, found := tokenizer.token_to_id(token.text)):
            logger.warning(
                f"{files.path} lists token {token.text!r} with id {token.id}, but it gets id {found}, as in "
                f"transformers: the ids before it are not all in the vocabulary"
            )
    return TokenizerJson(tokenizer)


def _tokens_to_add(tokenizer: Tokenizer, tokens: AddedTokens) -> list[AddedToken]:
    """The tokens in the order in which they get ids: the listed ones, then special tokens that are not among them."""
    stored = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    listed = [token for token in tokens.listed if tokens.is_complete or token.text not in stored]
    names = {token.text for token in tokens.named.values()}
    if not tokens.is_complete:  # a stored token that has the name of a special token becomes one
        listed += [_stored_token(token) for text, token in stored.items() if text in names and not token.special]
    known = {*stored, *(token.text for token in listed)}
    special = {token.text: token for token in (*tokens.named.values(), *tokens.extra) if token.text not in known}
    return [*listed, *special.values()]


def _stored_token(token: tokenizers.AddedToken) -> AddedToken:
    flags = {flag: getattr(token, flag) for flag in ("normalized", "single_word", "lstrip", "rstrip")}
    return AddedToken(token.content, special=True, **flags)


def _library_token(token: AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.text,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )
