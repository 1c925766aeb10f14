"""tokenizer.json, read by the `tokenizers` library: what transformers.AutoTokenizer has underneath.

transformers reads the same file but takes 1.8 s to import, too long for a host program.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from axzoo.core.errors import AxzooError
from axzoo.core.files import require_size

_MOST_BYTES = 128 << 20
"""Gemma's, of 262,144 tokens, has 33 MB."""


class TokenizerJson:
    """A backend of the `tokenizers` library."""

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
    """Reads a tokenizer.json. Raises AxzooError when it is none, or larger than one can be."""
    require_size(path, _MOST_BYTES)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise AxzooError(f"{path} is not a tokenizer: {error}") from error
    tokenizer.no_truncation()  # left in some files by their training script
    tokenizer.no_padding()
    return TokenizerJson(tokenizer)
