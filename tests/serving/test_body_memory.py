"""The memory of all requests together is bounded, on both servers."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import Server

sys.path.append(str(Path(__file__).parents[1] / "tokenizer"))
from tokenizer_server import Server as TokenizerServer
from tokenizer_server import tokenizer_server

from axzoo.serving.doors import MAX_LARGE_BYTES, SMALL_BYTES

MODEL = "tiny-w32a32"
MIB = 1 << 20


@pytest.fixture(scope="module")
def tokenizer(tiny_served: Path) -> Iterator[TokenizerServer]:
    with tokenizer_server(tiny_served / "tokenizer") as running:
        yield running


def _memory(pid: int, field: str) -> int:
    """Return VmRSS (now) or VmHWM (the peak) in MiB."""
    fields = Path(f"/proc/{pid}/status").read_text().split()
    return int(fields[fields.index(f"{field}:") + 1]) // 1024


def _head(path: str, length: int) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
    return head.encode()


@pytest.mark.parametrize("kind", ["chat", "tokenizer"])
def test_unfinished_large_bodies(server: Server, tokenizer: TokenizerServer, kind: str) -> None:
    """Forty clients send nearly 1 MiB each, and do not finish. Small requests are answered meanwhile."""
    port, path = (server.port, "/v1/chat/completions") if kind == "chat" else (tokenizer.port, "/encode")
    held = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(40)]
    for client in held:
        with contextlib.suppress(ConnectionError):  # refused before it is sent
            client.sendall(_head(path, MIB) + b" " * (MIB - 1))
    refused = 0
    for client in held:
        client.settimeout(0.3)
        try:
            answer = client.recv(1000)
        except TimeoutError:
            continue
        except ConnectionResetError:  # the rest of the body was not read
            answer = b"HTTP/1.1 503 "
        assert answer.startswith(b"HTTP/1.1 503 ")
        refused += 1
    assert refused == 40 - MAX_LARGE_BYTES // (MIB - SMALL_BYTES)
    if kind == "chat":
        request = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        assert server.chat(**request)[0] == 200
    else:
        assert tokenizer.post("/encode", {"text": "hi"}).status == 200
    for client in held:
        client.close()


def test_the_limit_is_released(tokenizer: TokenizerServer) -> None:
    for _ in range(30):
        assert tokenizer.post("/encode", {"text": "a" * 1000, "padding": "x" * 900_000}).status == 200
        assert tokenizer.ask("POST", "/encode", b"x" * 900_000).status == 400


BODIES = [
    {"text": "\U0001f600" * 50_000},  # 200,000 tokens
    {"text": "x" * 100_000, "padding": [[]] * 150_000},
    {"token_ids": [1] * 65_536, "padding": {str(i): {} for i in range(50_000)}},
]


@pytest.mark.parametrize("body", BODIES, ids=["emoji", "lists", "ids"])
def test_large_bodies_at_once(tokenizer: TokenizerServer, body: dict[str, object]) -> None:
    """The soak test sends larger ones for a minute."""
    path = "/decode" if "token_ids" in body else "/encode"
    data = json.dumps(body, ensure_ascii=False).encode()
    before = _memory(tokenizer.process.pid, "VmRSS")
    statuses: list[int] = []

    def send() -> None:
        statuses.append(tokenizer.ask("POST", path, data, {"Content-Type": "application/json"}).status)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8
    assert _memory(tokenizer.process.pid, "VmHWM") - before < 100
