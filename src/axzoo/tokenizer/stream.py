"""Decodes token ids one at a time into text that can be printed at once, without incomplete characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"
"""Decoders return this for bytes that are not (yet) a whole UTF-8 character."""

_MAX_PENDING_TOKENS = 16
"""Tokens to wait for the end of a character. A valid character is at most three tokens away from complete."""


class StreamDecoder:
    """Pass ids to `push` and print what it returns; finish with `flush`.

    The text of a token depends on the token before it (a leading space is dropped at the start of a text), and a
    character can span several tokens. So each call decodes a short window that starts with the last tokens whose text
    was returned, and returns the text that the new tokens add once it ends with a whole character. Bytes that never
    form a character are returned as U+FFFD after a while, so that the window stays short.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._emitted = 0  # leading tokens of the window whose text was returned

    def push(self, token_id: int) -> str:
        """Return the text that this token completes: empty while a character is incomplete."""
        self._window.append(token_id)
        before, now = self._texts()
        pending = len(self._window) - self._emitted
        if pending < _MAX_PENDING_TOKENS and (len(now) <= len(before) or now.endswith(_INCOMPLETE)):
            return ""
        if len(now) <= len(before):  # special tokens without text: drop them
            del self._window[self._emitted :]
            return ""
        self._window = self._window[self._emitted :]
        self._emitted = len(self._window)
        return now[len(before) :]

    def flush(self, truncated: bool = False) -> str:
        """Return the remaining text after the last token.

        An incomplete character becomes U+FFFD. It is dropped if the text was `truncated`, because then the rest of the
        character was cut off.
        """
        before, now = self._texts()
        self._window, self._emitted = [], 0
        rest = now[len(before) :]
        return rest.rstrip(_INCOMPLETE) if truncated else rest

    def _texts(self) -> tuple[str, str]:
        return self._decode(self._window[: self._emitted]), self._decode(self._window)
