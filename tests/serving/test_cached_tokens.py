"""The cache of one client's prompt is not visible to other clients, in `cached_tokens` or in time."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
from chat_server import Server

MODEL = "tiny-w32a32"
TEXT = "x" * 79  # 80 tokens with the token of the role


class Connection:
    """A kept-alive connection."""

    def __init__(self, port: int, **headers: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._headers = {"Content-Type": "application/json", **headers}

    def cached(self, *contents: str, path: str = "/v1/chat/completions", **extra: Any) -> tuple[int, str]:
        """Ask, and return the number of cached tokens and the answer. `contents` alternate between user and answers."""
        roles = ("user", "assistant")
        prompt: dict[str, Any] = {"prompt": "".join(contents)}
        if path == "/v1/chat/completions":
            prompt = {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]}
        body = {"model": MODEL, "max_tokens": 8, **prompt, **extra}
        self._connection.request("POST", path, json.dumps(body), self._headers)
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        assert response.status == 200, answer
        choice = answer["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"], text

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def connections(server: Server) -> Iterator[list[Connection]]:
    opened = [Connection(server.port), Connection(server.port), Connection(server.port, Authorization="Bearer other")]
    yield opened
    for connection in opened:
        connection.close()


def test_another_connection_does_not_see_a_prompt(connections: list[Connection]) -> None:
    first, second, _ = connections
    assert first.cached(TEXT)[0] == 0
    assert first.cached(TEXT)[0] == 79
    assert second.cached(TEXT)[0] == 0
    assert second.cached(TEXT[:40] + "y")[0] > 0
    assert first.cached(TEXT[:40] + "y")[0] == 0
    assert second.cached(TEXT, seed=1)[0] == 0
    assert second.cached(TEXT, seed=1)[0] == 64


def test_a_conversation_continues_on_another_connection(connections: list[Connection]) -> None:
    """Whoever sends the whole conversation back, with the answer, knows it already."""
    first, second, other = connections
    for wrong in ("", "guessed"):
        first.cached(TEXT)
        assert second.cached(TEXT, wrong, "more")[0] == 0
    _, answer = first.cached(TEXT, max_tokens=30, logit_bias={str(token): 100 for token in range(65, 70)})
    cached, again = second.cached(
        TEXT, answer, "more", max_tokens=30, logit_bias={str(token): 100 for token in range(65, 70)}
    )
    assert cached >= 80
    assert other.cached(TEXT, answer, "more", again, "more")[0] == 0  # with another key


def test_a_text_continues_on_another_connection(connections: list[Connection]) -> None:
    first, second, _ = connections
    path, ascii_only = "/v1/completions", {str(token): 100 for token in range(65, 70)}
    _, answer = first.cached(TEXT, path=path, logit_bias=ascii_only)
    assert second.cached(TEXT, answer, "more", path=path)[0] >= 79
    first.cached(TEXT, path=path, logit_bias=ascii_only)
    assert second.cached(TEXT, path=path)[0] == 0


def test_a_prompt_that_does_not_fit_leaves_the_cache(connections: list[Connection]) -> None:
    first, second, _ = connections
    first.cached(TEXT)
    with pytest.raises(AssertionError, match="the prompt has 5001 tokens, but the context holds only 4095: send fewer"):
        second.cached("x" * 5000)
    assert first.cached(TEXT)[0] == 79
