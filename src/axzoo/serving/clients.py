"""Who sent a request, and whether it continues an earlier one.

Cached tokens of one client's prompt must not be visible to another client, neither in `cached_tokens` nor by the time
that an answer takes. There are no accounts, so a client is recognized by its connection, or by sending back the whole
conversation, with the answer that only this client got.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from axzoo.serving.chat_requests import ChatPrompt, TextPrompt

_IDENTITY_HEADERS = ("authorization", "api-key", "x-api-key", "cookie", "x-forwarded-for", "forwarded", "origin")


@dataclass(frozen=True)
class Client:
    """The sender of a request. `connection` identifies its TCP connection, `identity` is its address and headers."""

    connection: object
    identity: tuple[str, ...]


def client_of(request: Request) -> Client:
    """Return the sender of a request."""
    host = request.client.host if request.client is not None else ""
    headers = (request.headers.get(name, "") for name in _IDENTITY_HEADERS)
    return Client(request.scope.get("state", {}).get("connection", request.client), (host, *headers))


@dataclass(frozen=True)
class Exchange:
    """A prompt, the client that sent it, and the answer it got."""

    client: Client
    prompt: ChatPrompt | TextPrompt
    answer: str

    def may_be_reused_by(self, client: Client, prompt: ChatPrompt | TextPrompt) -> bool:
        """Whether a prompt may reuse the cached tokens of this exchange."""
        if client.identity != self.client.identity:
            return False
        return client.connection == self.client.connection or self._continued_by(prompt)

    def _continued_by(self, prompt: ChatPrompt | TextPrompt) -> bool:
        if isinstance(prompt, ChatPrompt) and isinstance(self.prompt, ChatPrompt):
            turns = len(self.prompt.messages)
            if prompt.messages[:turns] != self.prompt.messages or len(prompt.messages) <= turns:
                return False
            reply = prompt.messages[turns]
            return reply["role"] == "assistant" and reply["content"].strip() == self.answer.strip() != ""
        if isinstance(prompt, TextPrompt) and isinstance(self.prompt, TextPrompt):
            texts = (prompt.content, self.prompt.content)
            if isinstance(texts[0], str) and isinstance(texts[1], str):
                return self.answer != "" and texts[0].startswith(texts[1] + self.answer)
        return False
