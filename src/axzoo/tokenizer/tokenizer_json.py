"""Tokenizers from a tokenizer.json, read with the `tokenizers` library that transformers.AutoTokenizer uses.

transformers itself takes 1.8 s to import, which is too long for a host program.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from axzoo.core.errors import AxzooError
from axzoo.core.files import require_size

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


def load_tokenizer_json(path: Path) -> TokenizerJson:
    """Read a tokenizer.json. Raises AxzooError when it is not valid, or larger than 128 MiB."""
    require_size(path, _MAX_BYTES)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise AxzooError(f"{path} is not a valid tokenizer: {error}") from error
    tokenizer.no_truncation()  # some training scripts leave these settings in the file
    tokenizer.no_padding()
    return TokenizerJson(tokenizer)
