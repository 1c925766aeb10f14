"""Fifty clients for a minute on each server, ten of them hostile: answers stay right, and memory stays bounded."""

from __future__ import annotations

import http.client
import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import chat_server
from test_origins import GETS, PAGES
from test_serve import greedy

sys.path.append(str(Path(__file__).parents[1] / "tokenizer"))
from tokenizer_server import tokenizer_server

from axzoo.tokenizer.local import load_tokenizer

pytestmark = pytest.mark.soak

MODEL = "tiny-w32a32"
SECONDS, FRIENDS, HOSTILE = 60, 40, 10
JSON = {"Content-Type": "application/json"}


def _send(port: int, path: str, body: bytes | None, headers: dict[str, str], method: str = "POST") -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def _attack(port: int, paths: tuple[str, ...], seen: Counter[str], rng: random.Random) -> None:
    """Send one hostile request. Connections may be reset."""
    path = rng.choice(paths)
    large = json.dumps({"text": "\U0001f600" * 200_000, "padding": [[]] * 50_000}, ensure_ascii=False).encode()
    attacks: list[Callable[[], tuple[int, Any]]] = [
        lambda: _send(port, path, large, JSON),
        lambda: _send(port, path, b"[" * 500_000, JSON),
        lambda: _send(port, path, b"x" * (3 << 20), JSON),
        lambda: _send(port, path, rng.randbytes(1000), JSON),
        lambda: _send(port, path, b"{}", PAGES[rng.choice(list(PAGES))]),
        lambda: _send(port, "/get_uid", None, GETS[rng.choice(list(GETS))], "GET"),
        lambda: _disconnect(port, path),
    ]
    try:
        status, _ = rng.choice(attacks)()
        seen[str(status)] += 1
    except (OSError, http.client.HTTPException) as error:
        seen[type(error).__name__] += 1


def _disconnect(port: int, path: str) -> tuple[int, Any]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n"
        client.sendall(head.encode() + b"{" * 100_000)
    return 0, None


def _soak(port: int, pid: int, paths: tuple[str, ...], friend: Callable[[int], str | None]) -> list[int]:
    """Run all clients. `friend` asks a question and returns what is wrong, if anything. Return memory in MiB."""
    until = time.monotonic() + SECONDS
    wrong: list[str] = []
    seen: Counter[str] = Counter()
    milliseconds: list[float] = []

    def ask(number: int) -> None:
        while time.monotonic() < until:
            start = time.perf_counter()
            problem = friend(number)
            milliseconds.append((time.perf_counter() - start) * 1e3)
            wrong.extend([problem] if problem else [])

    def attack(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < until:
            _attack(port, paths, seen, rng)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(FRIENDS)]
    threads += [threading.Thread(target=attack, args=(number,)) for number in range(HOSTILE)]
    for thread in threads:
        thread.start()
    memory = []
    while time.monotonic() < until:
        time.sleep(2)
        memory.append(_resident(pid))
    for thread in threads:
        thread.join()
    milliseconds.sort()
    print(
        f"\n{len(milliseconds)} answers, p50 {milliseconds[len(milliseconds) // 2]:.0f} ms, p99 "
        f"{milliseconds[len(milliseconds) * 99 // 100]:.0f} ms; {seen.total()} attacks {dict(seen)}; resident "
        f"{memory[len(memory) // 3]} MiB after {SECONDS // 3} s, at most {max(memory)}, at the end {memory[-1]}"
    )
    assert not wrong, wrong[:3]
    assert len(milliseconds) > 200
    assert seen.total() > 200
    assert "500" not in seen
    return memory


def _resident(pid: int) -> int:
    fields = Path(f"/proc/{pid}/status").read_text().split()
    return int(fields[fields.index("VmRSS:") + 1]) // 1024


def test_the_chat_server(tiny_served_s8: Path) -> None:
    """More clients than the queue holds: a client that gets status 429 asks again."""
    questions = [[{"role": "user", "content": f"question {number}"}] for number in range(FRIENDS)]
    expected = [greedy(tiny_served_s8, question, 4, "fast") for question in questions]
    with chat_server(tiny_served_s8, "--mode", "fast") as running:

        def friend(number: int) -> str | None:
            body = {"model": MODEL, "messages": questions[number], "temperature": 0, "max_tokens": 4}
            for _ in range(10_000):
                status, answer = _send(running.port, "/v1/chat/completions", json.dumps(body).encode(), JSON)
                if status not in (429, 503):
                    break
                time.sleep(0.5)
            if status != 200:
                return f"{status} {answer}"
            text = answer["choices"][0]["message"]["content"]
            if answer["usage"]["prompt_tokens_details"]["cached_tokens"]:
                return "another client's tokens were reused"
            return None if text == expected[number] else f"{text!r} instead of {expected[number]!r}"

        paths = ("/v1/chat/completions", "/v1/completions")
        memory = _soak(running.port, running.process.pid, paths, friend)
    assert memory[-1] < memory[len(memory) // 3] * 1.1 + 20
    assert max(memory) < memory[0] + 250


def test_the_tokenizer_server(tiny_served: Path) -> None:
    folder = tiny_served / "tokenizer"
    tokenizer = load_tokenizer(folder)
    expected = [tokenizer.encode_chat([{"role": "user", "content": f"question {number}"}]) for number in range(FRIENDS)]
    with tokenizer_server(folder) as running:

        def friend(number: int) -> str | None:
            text = f"question {number}"
            _, uid = _send(running.port, "/get_uid", None, {}, "GET")
            for body in ({"text": text}, {"text": text, **uid}):
                status, answer = _send(running.port, "/encode", json.dumps(body).encode(), JSON)
                if (status, answer.get("token_ids")) != (200, expected[number]):
                    return f"{status} {answer}"
            decoded = {"token_ids": expected[number], **uid}
            status, answer = _send(running.port, "/decode", json.dumps(decoded).encode(), JSON)
            return None if text in answer.get("text", "") else f"{status} {answer}"

        memory = _soak(running.port, running.process.pid, ("/encode", "/decode", "/reset"), friend)
    assert memory[-1] < memory[len(memory) // 3] * 1.1 + 20
    assert max(memory) < memory[0] + 250
