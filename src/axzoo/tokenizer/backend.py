"""What a tokenizer must do, whichever library reads its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from axzoo.tokenizer.chat_template import Message

ChatForm = Callable[[Sequence[Message], bool], list[int]]
"""Messages, and whether the assistant's turn is opened after them -> token ids."""


class Backend(Protocol):
    """Text to token ids and back. Ids are not negative; those the vocabulary lacks have no text."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Ids of a text without unpaired surrogates, with the tokens that begin or end every text if asked for."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of ids; bytes that are no whole character show as U+FFFD."""

    def token_to_id(self, token: str) -> int | None:
        """The id of a token given by its text."""


@dataclass(frozen=True)
class LoadedBackend:
    """A backend and what is known of it without the files beside its own: the text of bos_token, eos_token, ...; how it
    writes conversations, None where that is the chat template's business; and the ids that end an answer."""

    backend: Backend
    special_tokens: Mapping[str, str]
    chat: ChatForm | None = None
    eos_token_ids: tuple[int, ...] = ()
