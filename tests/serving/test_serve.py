"""`axzoo serve` with the official OpenAI client and with misbehaving clients."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from chat_server import Server, chat_server
from openai.types.chat.chat_completion_assistant_message_param import ChatCompletionAssistantMessageParam
from openai.types.chat.chat_completion_stream_options_param import ChatCompletionStreamOptionsParam
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

from axzoo.runtime.generate import generate
from axzoo.runtime.model import Mode, load_model
from axzoo.tokenizer.local import load_tokenizer

MODEL = "tiny-w32a32"
HELLO: Any = [{"role": "user", "content": "hello"}]
LONG = 3500


def greedy(folder: Path, messages: Any, count: int, mode: Mode = "exact") -> str:
    """Return the answer of the model, computed without the server."""
    model, tokenizer = load_model(folder, mode), load_tokenizer(folder / "tokenizer")
    ids = tokenizer.encode_chat(messages)
    answer = generate(model, ids, lambda logits, _: int(logits.argmax()), set(), count)
    stream = tokenizer.stream()
    return "".join([*map(stream.push, answer), stream.flush(truncated=True)])


def test_models_and_health(server: Server, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "axzoo"
    assert server.ask("GET", "/health") == (200, {"status": "ok"})


def test_an_answer_is_that_of_the_model(tiny_served: Path, client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, max_tokens=20)
    assert done.choices[0].message.content == greedy(tiny_served, HELLO, 20)
    assert done.choices[0].finish_reason == "length"
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (6, 20, 26)


def test_an_incomplete_character_is_dropped(tiny_served: Path, client: openai.OpenAI) -> None:
    """Tokens are bytes, and the model generates arbitrary bytes."""
    whole, lengths = greedy(tiny_served, HELLO, 60), []
    for count in range(1, 30):
        done = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, max_tokens=count)
        text = done.choices[0].message.content
        assert text is not None and whole.startswith(text) and not text.endswith("\ufffd")
        lengths.append(len(text))
    assert len(set(lengths)) < len(lengths)  # some answers ended within a character


def test_a_conversation_continues(tiny_served: Path, client: openai.OpenAI) -> None:
    turns = [*HELLO]
    for question in ("one", "two"):
        answer = client.chat.completions.create(model=MODEL, messages=turns, temperature=0, max_tokens=5)
        text = answer.choices[0].message.content
        assert text == greedy(tiny_served, turns, 5)
        turns += [{"role": "assistant", "content": text}, {"role": "user", "content": question}]


def test_a_stream_has_the_same_answer(client: openai.OpenAI) -> None:
    request: Any = {"model": MODEL, "messages": HELLO, "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**request)
    chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    plain = list(client.chat.completions.create(**request, stream=True))
    assert not any(chunk.usage for chunk in plain)


def test_an_answer_ends_before_a_stop_text(client: openai.OpenAI) -> None:
    request: Any = {"model": MODEL, "messages": HELLO, "temperature": 0, "max_tokens": 60}
    whole = client.chat.completions.create(**request).choices[0].message.content
    stop = whole[20:22]
    expected = whole[: whole.index(stop)]
    done = client.chat.completions.create(**request, stop=[stop, "never generated"])
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == (expected, "stop")
    chunks = client.chat.completions.create(**request, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_a_seed_makes_sampling_repeatable(client: openai.OpenAI) -> None:
    def answer(seed: int) -> str | None:
        request: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 30, "temperature": 1.5, "top_p": 0.9}
        return client.chat.completions.create(**request, seed=seed).choices[0].message.content

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in range(4)}) > 1


def test_repeatable_answers_reuse_only_whole_chunks(client: openai.OpenAI) -> None:
    """tests/runtime/test_reuse.py shows that such answers do not depend on earlier requests."""

    def cached(text: str, **request: Any) -> int | None:
        messages: Any = [{"role": "user", "content": text}]
        usage = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=3, **request).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens

    text = "x" * 79  # 80 tokens, in chunks of 32
    assert [cached(text, seed=1), cached(text, seed=1), cached(text, temperature=0)] == [0, 64, 64]
    assert [cached(text), cached(text), cached(text, seed=1)] == [79, 79, 64]
    assert [cached(text[:50] + "y"), cached(text), cached(text, seed=2)] == [51, 51, 32]


def test_an_answer_can_be_sent_back_unchanged(tiny_served: Path, client: openai.OpenAI) -> None:
    """That includes its empty fields: refusal, tool_calls, function_call, audio, annotations."""
    turns: Any = [*HELLO]
    answer = client.chat.completions.create(model=MODEL, messages=turns, temperature=0, max_tokens=5)
    reply = answer.choices[0].message
    assert {"refusal", "tool_calls", "function_call", "audio", "annotations"} <= reply.model_dump().keys()
    expected = greedy(tiny_served, [*turns, {"role": "assistant", "content": reply.content}, *HELLO], 5)
    for message in (reply, reply.model_dump(), reply.model_dump() | {"tool_calls": [], "annotations": []}):
        more: Any = [*turns, message, *HELLO]
        again = client.chat.completions.create(model=MODEL, messages=more, temperature=0, max_tokens=5)
        assert again.choices[0].message.content == expected


def test_text_parts_and_the_developer_role(tiny_served: Path, client: openai.OpenAI) -> None:
    parts: Any = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
    ]
    plain = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    done = client.chat.completions.create(model=MODEL, messages=parts, temperature=0, max_tokens=8)
    assert done.choices[0].message.content == greedy(tiny_served, plain, 8)


def test_every_optional_key_may_be_null(tiny_served: Path, server: Server) -> None:
    """The keys are those of the official client's request and messages."""
    request = set(CompletionCreateParamsNonStreaming.__annotations__) - {"model", "messages"}
    answer = set(ChatCompletionAssistantMessageParam.__annotations__) - {"role", "content"}
    options = set(ChatCompletionStreamOptionsParam.__annotations__)
    assert {"stop", "stream", "top_logprobs"} <= request and "tool_calls" in answer and "include_usage" in options
    base = {"model": MODEL, "messages": HELLO, "seed": 0, "temperature": 0, "max_tokens": 4}
    expected = greedy(tiny_served, HELLO, 4)
    for key in request - {"seed", "temperature", "max_tokens"}:
        status, body = server.chat(**base | {key: None})
        assert (status, key) == (200, key), body
        assert body["choices"][0]["message"]["content"] == expected, key
    defaults = dict.fromkeys(request) | {"max_tokens": 4, "temperature": 0}
    assert server.chat(**base | defaults)[1]["choices"][0]["message"]["content"] == expected
    assert server.chat(**base | {"temperature": None, "seed": None})[0] == 200
    turns = [*HELLO, {"role": "assistant", "content": None} | dict.fromkeys(answer), *HELLO]
    silent = [*HELLO, {"role": "assistant", "content": ""}, *HELLO]
    status, body = server.chat(**base | {"messages": turns})
    assert (status, body["choices"][0]["message"]["content"]) == (200, greedy(tiny_served, silent, 4)), body
    status, text = server.ask_text(**base | {"stream": True, "stream_options": dict.fromkeys(options)})
    assert status == 200 and text.endswith("data: [DONE]\n\n") and '"usage"' not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 2}, "n: "),
        ({"model": None}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "user", "content": None}]}, "content"),
        ({"messages": [{"role": None, "content": "x"}]}, "role"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"stop": [None]}, "stop"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "5001"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "JSON"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]}, "tool_calls"),
        ({"messages": [{"role": "assistant", "content": "x", "refusal": "no"}]}, "refusal"),
    ],
)
def test_invalid_requests_are_refused(server: Server, change: dict[str, Any], message: str) -> None:
    status, body = server.chat(**({"model": MODEL, "messages": HELLO} | change))
    assert status == 400
    assert message in body["error"]["message"]
    assert body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": ' + b"[" * 100_000])
def test_malformed_bodies(server: Server, body: bytes) -> None:
    status, answer = server.ask("POST", "/v1/chat/completions", body)
    assert status == 400
    assert answer["error"]["message"]


def test_large_bodies_wrong_paths_and_wrong_models(server: Server, client: openai.OpenAI) -> None:
    assert server.ask("POST", "/v1/chat/completions", b"x" * (10 << 20))[0] == 413
    status, answer = server.ask("GET", "/v1/nothing")
    assert (status, answer["error"]["code"]) == (404, None)
    assert "/v1/nothing does not exist" in answer["error"]["message"]
    assert server.ask("GET", "/v1/chat/completions")[0] == 405
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'") as refused:
        client.chat.completions.create(model="gpt", messages=HELLO)
    assert refused.value.code == "model_not_found"


def test_a_client_that_disconnects_during_a_stream_ends_the_answer(server: Server, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, max_tokens=LONG, stream=True)
    next(iter(stream))
    stream.close()
    start = time.perf_counter()
    client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, max_tokens=1)
    assert time.perf_counter() - start < 1  # the whole answer would take several seconds


def test_clients_that_disconnect_leave_no_errors_in_the_log(tiny_served: Path) -> None:
    """Before the answer begins, in the middle of a stream, and at its end."""
    with chat_server(tiny_served) as running:
        for stream, read in ((False, 0), (True, 0), (True, 1), (True, 2000), (True, 1 << 20)):
            request = {"model": MODEL, "messages": HELLO, "max_tokens": LONG if read < 2000 else 30, "stream": stream}
            body = json.dumps(request).encode()
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            head += f"Content-Length: {len(body)}"
            with socket.create_connection(("127.0.0.1", running.port)) as connection:
                connection.sendall(f"{head}\r\n\r\n".encode() + body)
                while read > 0 and (data := connection.recv(read)):
                    read -= len(data)
        assert running.chat(model=MODEL, messages=HELLO, max_tokens=1)[0] == 200
        assert running.log == ""


SHORT_TIMEOUTS = """
import socket, sys
from axzoo.cli import main
from axzoo.serving import http as server
server.STALL_TIMEOUT = 0.5
original = server._listen
def listen(host, port):
    listener = original(host, port)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return listener
server._listen = listen
main(["serve", *sys.argv[1:]])
"""


def test_a_client_that_stops_reading_does_not_block_others(tiny_served: Path) -> None:
    with (
        chat_server(tiny_served, program=("-c", SHORT_TIMEOUTS)) as running,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stalled,
    ):
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect(("127.0.0.1", running.port))
        body = json.dumps({"model": MODEL, "messages": HELLO, "max_tokens": LONG, "stream": True}).encode()
        stalled.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        stalled.sendall(body)
        assert stalled.recv(8) == b"HTTP/1.1"
        assert running.chat(model=MODEL, messages=HELLO, max_tokens=1)[0] == 200  # within 30 s
        stalled.settimeout(5)
        read = b""
        with contextlib.suppress(ConnectionResetError):
            while data := stalled.recv(4096):
                read += data
        assert b"[DONE]" not in read
        assert running.log == ""


def test_a_client_that_disconnects_while_waiting_frees_its_place(server: Server, client: openai.OpenAI) -> None:
    """One request is answered and two wait. A fourth is rejected until the others have disconnected."""
    body = json.dumps({"model": MODEL, "messages": HELLO, "temperature": 0, "max_tokens": LONG}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
    for waiting in clients:
        waiting.sendall(head + body)
    time.sleep(0.3)
    with pytest.raises(openai.RateLimitError, match="try again") as refused:
        client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
    assert refused.value.response.headers["retry-after"] == "2"
    for waiting in clients:
        waiting.close()
    time.sleep(0.3)
    assert client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1).usage is not None


def test_concurrent_clients_get_their_own_answers(tiny_served: Path, server: Server, client: openai.OpenAI) -> None:
    questions = [[{"role": "user", "content": f"question {i}"}] for i in range(3)]
    expected = [greedy(tiny_served, question, 15) for question in questions]
    found: dict[int, str | None] = {}

    def ask(i: int) -> None:
        done = client.chat.completions.create(model=MODEL, messages=questions[i], temperature=0, max_tokens=15)  # type: ignore[arg-type]
        found[i] = done.choices[0].message.content

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(3)] == expected


def test_slow_clients_do_not_block_others(server: Server, client: openai.OpenAI) -> None:
    slow = socket.create_connection(("127.0.0.1", server.port))
    slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    assert client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1).usage is not None
    slow.close()


def test_it_listens_on_localhost_and_exits_on_sigterm(tiny_served: Path) -> None:
    with chat_server(tiny_served) as running:
        assert running.line == f"{MODEL} at http://localhost:{running.port}"
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{running.port:04X}")] == [
            f"0100007F:{running.port:04X}"
        ]
        running.process.terminate()
        assert running.process.wait(10) in (0, -15)


def test_the_default_mode_has_a_prefill_session(tiny_served_s8: Path) -> None:
    question = [{"role": "user", "content": "a question of more than one chunk " * 2}]
    with chat_server(tiny_served_s8) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        for content in (question, HELLO, question):
            done = client.chat.completions.create(model=MODEL, messages=content, temperature=0, max_tokens=12)
            assert done.choices[0].message.content == greedy(tiny_served_s8, content, 12, "fast-prompts")
    assert len(load_model(tiny_served_s8, "fast-prompts")._network._sessions) == 2


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["fast-prompts", "fast", "exact"])
def test_eight_clients_for_a_minute(tiny_served_s8: Path, mode: Mode) -> None:
    """With -s, this prints the figures of docs/serve.md for each mode."""
    questions = [[{"role": "user", "content": f"question {i} of a hundred letters".ljust(100, "?")}] for i in range(8)]
    expected = [greedy(tiny_served_s8, question, 16, mode) for question in questions]
    wrong: list[str] = []
    seconds: list[float] = []
    with chat_server(tiny_served_s8, "--mode", mode) as running:
        until = time.monotonic() + 60
        memory: list[float] = []

        def ask(i: int) -> None:
            client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
            while time.monotonic() < until:
                start = time.perf_counter()
                done = client.chat.completions.create(
                    model=MODEL,
                    messages=questions[i],
                    temperature=0,
                    max_tokens=16,  # type: ignore[arg-type]
                )
                seconds.append(time.perf_counter() - start)
                if done.choices[0].message.content != expected[i]:
                    wrong.append(str(done.choices[0].message.content))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        while time.monotonic() < until:
            time.sleep(5)
            memory.append(running.resident_mb)
        for thread in threads:
            thread.join()
    seconds.sort()
    print(f"\n{mode} mode: {len(seconds)} answers, p50 {seconds[len(seconds) // 2] * 1e3:.0f} ms", end=", ")
    print(f"p99 {seconds[len(seconds) * 99 // 100] * 1e3:.0f} ms, RSS {memory[1]:.0f} to {memory[-1]:.0f} MB")
    assert not wrong
    assert len(seconds) > 100
    assert memory[-1] < memory[1] * 1.05
