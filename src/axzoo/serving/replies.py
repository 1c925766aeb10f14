"""Builds the JSON objects of answers, in the formats of OpenAI's chat and text completions."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from axzoo.serving.answers import AnswerSummary, Piece, TokenLogprob


class Reply(Protocol):
    """The format of an answer, complete or in chunks."""

    def complete(self, pieces: Sequence[Piece], summary: AnswerSummary) -> dict[str, Any]:
        """Return a whole answer."""

    def first(self) -> dict[str, Any] | None:
        """Return the chunk before the text, if there is one."""

    def chunk(self, piece: Piece) -> dict[str, Any]: ...

    def last(self, reason: str) -> dict[str, Any]: ...

    def usage(self, summary: AnswerSummary) -> dict[str, Any]:
        """Return the chunk with the token counts, which has no text."""


class ChatReply:
    """A chat completion."""

    def __init__(self, model: str, with_logprobs: bool) -> None:
        self._head = _head("chatcmpl", model)
        self._with_logprobs = with_logprobs

    def complete(self, pieces: Sequence[Piece], summary: AnswerSummary) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(piece.text for piece in pieces)}
        choice = {"index": 0, "message": message, **self._logprobs(pieces), "finish_reason": summary.reason}
        return self._head | {"object": "chat.completion", "choices": [choice]} | usage(summary)

    def first(self) -> dict[str, Any]:
        return self._chunk({"role": "assistant", "content": ""})

    def chunk(self, piece: Piece) -> dict[str, Any]:
        return self._chunk({"content": piece.text}, self._logprobs([piece]))

    def last(self, reason: str) -> dict[str, Any]:
        return self._chunk({}, reason=reason)

    def usage(self, summary: AnswerSummary) -> dict[str, Any]:
        return self._head | {"object": "chat.completion.chunk", "choices": []} | usage(summary)

    def _chunk(
        self, delta: dict[str, str], logprobs: dict[str, Any] | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, **(logprobs or {}), "finish_reason": reason}
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        if not self._with_logprobs:
            return {}
        tokens = [_chat_logprob(token) for piece in pieces for token in piece.logprobs]
        return {"logprobs": {"content": tokens, "refusal": None}}


class TextReply:
    """A text completion."""

    def __init__(self, model: str, with_logprobs: bool) -> None:
        self._head = _head("cmpl", model) | {"object": "text_completion"}
        self._with_logprobs = with_logprobs
        self._offset = 0

    def complete(self, pieces: Sequence[Piece], summary: AnswerSummary) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        return self._choice(text, pieces, summary.reason) | usage(summary)

    def first(self) -> None:
        return None

    def chunk(self, piece: Piece) -> dict[str, Any]:
        return self._choice(piece.text, [piece], None)

    def last(self, reason: str) -> dict[str, Any]:
        return self._choice("", [], reason)

    def usage(self, summary: AnswerSummary) -> dict[str, Any]:
        return self._head | {"choices": []} | usage(summary)

    def _choice(self, text: str, pieces: Sequence[Piece], reason: str | None) -> dict[str, Any]:
        tokens = [token for piece in pieces for token in piece.logprobs]
        logprobs = self._logprobs(tokens) if self._with_logprobs else None
        return self._head | {"choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}]}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [dict(token.alternatives) for token in tokens],
            "text_offset": offsets,
        }


def _head(prefix: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}


def usage(summary: AnswerSummary) -> dict[str, Any]:
    """Return `usage`, and `timings`, which is an extension that other local servers have too."""
    prompt, answer = summary.prompt_tokens, summary.answer_tokens
    return {
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": summary.cached_tokens},
        },
        "timings": {"ttft_ms": summary.ttft * 1e3, "tokens_per_second": summary.tokens_per_second},
    }


def _chat_logprob(token: TokenLogprob) -> dict[str, Any]:
    best = [{"token": text, "logprob": logprob, "bytes": _bytes(text)} for text, logprob in token.alternatives]
    return {"token": token.text, "logprob": token.logprob, "bytes": _bytes(token.text), "top_logprobs": best}


def _bytes(text: str) -> list[int] | None:
    """Return the UTF-8 bytes of a token. They are unknown if the token is not a whole character."""
    return None if "\ufffd" in text else list(text.encode())


def event(data: dict[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
