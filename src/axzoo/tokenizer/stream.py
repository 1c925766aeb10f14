"""Token ids one by one into text that can be printed at once: never half a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"
"""What a decoder writes for bytes that are not a whole UTF-8 character (yet)."""

_PATIENCE = 16
"""Tokens to wait for the end of a character; of a valid one, no more than three are missing."""


class StreamDecoder:
    """Feed ids to `push`, print what it returns, and end with `flush`.

    A token's text depends on its left neighbour (a leading space is dropped at the start of a text), and a character
    can span several tokens. So each call decodes a short window, which starts at the last piece that came out, and
    returns what the new tokens added, once that ends in a whole character. Bytes that never become one come out as
    U+FFFD after a while, so that no stream of ids makes the window long.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._told = 0

    def push(self, token_id: int) -> str:
        """The text that became complete with this token: empty while a character is."""
        self._window.append(token_id)
        before, now = self._texts()
        waited = len(self._window) - self._told
        if waited < _PATIENCE and (len(now) <= len(before) or now.endswith(_INCOMPLETE)):
            return ""
        if len(now) <= len(before):  # special tokens, which say nothing: forget them
            del self._window[self._told :]
            return ""
        self._window = self._window[self._told :]
        self._told = len(self._window)
        return now[len(before) :]

    def flush(self, cut: bool = False) -> str:
        """The rest, when no more tokens come: half a character shows as U+FFFD, and is left out where the text was
        `cut`, for there it is no fault of the text's."""
        before, now = self._texts()
        self._window, self._told = [], 0
        rest = now[len(before) :]
        return rest.rstrip(_INCOMPLETE) if cut else rest

    def _texts(self) -> tuple[str, str]:
        return self._decode(self._window[: self._told]), self._decode(self._window)
