"""A stand-in for the tokenizer of a model that has none, so that its files can still be checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from axzoo.tokenizer.end_tokens import configured_end_ids
from axzoo.tokenizer.local import LocalTokenizer, find_tokenizer


class TokenIds:
    """A backend whose tokens are numbers: a text becomes the values of its bytes, and id 12 becomes the text <12>."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Encode the bytes of the text in UTF-8, modulo the size of the vocabulary."""
        return [byte % self.vocab_size for byte in text.encode()]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join(f"<{index}>" for index in ids)

    def token_to_id(self, token: str) -> int | None:
        return None

    def tokens_from(self, first_id: int) -> list[str]:
        return []


def tokenizer_or_ids(folder: Path, vocab_size: int) -> LocalTokenizer:
    """The tokenizer of a folder, or one of numbers below `vocab_size` if it has none.

    Raises AxzooError when a file is not valid.
    """
    return find_tokenizer(folder) or LocalTokenizer(
        folder=folder,
        backend=TokenIds(vocab_size),
        special_tokens={},
        declared_end_ids=configured_end_ids(folder),
        chat_template=None,
        chat=None,
    )
