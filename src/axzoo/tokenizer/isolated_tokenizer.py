"""A tokenizer in a child process, because its files come with a checkpoint and are read by native libraries.

A tokenizer.json can describe steps that grow without bound, never finish, or end the process.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.chat_template import Message
from axzoo.tokenizer.child_process import ChildError, ChildProcess, Limits
from axzoo.tokenizer.tokenizer_folder import vocabulary_file
from axzoo.tokenizer.tokenizer_process import LoadedTokenizer, no_tokenizer

_MEMORY = 1 << 29
_MEMORY_PER_BYTE = 20
"""Memory for each byte of the file with the vocabulary. A tokenizer.json of 262,144 tokens needs 14."""
_MEMORY_PER_CHARACTER = 1 << 10
"""Memory for each character of a text. The `tokenizers` library needs several hundred bytes."""
_LOAD_SECONDS = 10
_TRIAL_SECONDS = 2
_SECONDS = 2
_CHARACTERS_PER_SECOND = 50_000
"""A text gets two seconds, and one more for so many characters. A million characters take about half a second."""

TRIAL_TEXT = "Hello, world! It's 12:30.\n\n  你好 😀 aaaaaaaaaaaaaaaa            é"
"""A tokenizer that cannot encode this is refused when it is loaded."""


class IsolatedTokenizer:
    """A TokenizerBackend. Every method raises AxzooError when the tokenizer fails or exceeds its limits."""

    def __init__(self, folder: Path, model_type: str | None) -> None:
        """Load the tokenizer of a folder, and encode and decode a text. Raises AxzooError when one of these fails."""
        name = vocabulary_file(folder)
        if name is None:
            raise no_tokenizer(folder)
        self._file = folder / name
        size = self._file.stat().st_size
        self._memory = _MEMORY + _MEMORY_PER_BYTE * size
        limits = Limits(self._memory, _LOAD_SECONDS + size // (4 << 20))
        setup = [str(folder.absolute()), model_type]
        self._child = ChildProcess("axzoo.tokenizer.tokenizer_process", setup, limits)
        try:
            loaded: LoadedTokenizer = self._child.set_up()
        except ChildError as error:
            raise AxzooError(f"{self._file} cannot be loaded: {error}: use another copy of the tokenizer") from None
        for logger, message in loaded["warnings"]:
            logging.getLogger(logger).warning(message)
        self.vocab_size = loaded["vocab_size"]
        """The largest id plus one."""
        self.special_tokens: Mapping[str, str] = loaded["special_tokens"]
        self.eos_token_ids = tuple(loaded["eos_token_ids"])
        """The ids that end an answer by the rules of the tokenizer's class."""
        self.has_chat = loaded["has_chat"]
        """Whether the tokenizer encodes conversations without a chat template."""
        self._ids: dict[str, int | None] = {}
        trial = Limits(self._memory, _TRIAL_SECONDS)
        ids = self._ask("encode a short text", trial, "encode", TRIAL_TEXT, True)
        self._ask("decode a short text", trial, "decode", ids, False)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._ask("encode this text", self._limits(len(text)), "encode", text, add_special_tokens)
        return ids

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        """Encode a conversation; only with `has_chat`."""
        turns = [dict(message) for message in messages]
        size = sum(len(message["content"]) for message in turns)
        ids: list[int] = self._ask("encode this text", self._limits(size), "encode_chat", turns, add_generation_prompt)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        text: str = self._ask(
            "decode these tokens", self._limits(8 * len(ids)), "decode", list(ids), skip_special_tokens
        )
        return text

    def token_to_id(self, token: str) -> int | None:
        if token not in self._ids:
            self._ids[token] = self._ask("look up a token", self._limits(len(token)), "token_to_id", token)
        return self._ids[token]

    def tokens_from(self, first_id: int) -> list[str]:
        tokens: list[str] = self._ask("list its tokens", self._limits(0), "tokens_from", first_id)
        return tokens

    def _limits(self, characters: int) -> Limits:
        memory = self._memory + _MEMORY_PER_CHARACTER * characters
        return Limits(memory, _SECONDS + characters // _CHARACTERS_PER_SECOND)

    def _ask(self, action: str, limits: Limits, method: str, *arguments: Any) -> Any:
        try:
            return self._child.ask([method, arguments], limits)
        except ChildError as error:
            raise AxzooError(f"{self._file} cannot {action}: {error}") from None
