"""The tokenizer client against servers of both protocols, by itself and in `axzoo run`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from axzoo.cli import main
from axzoo.core.errors import AxzooError
from axzoo.tokenizer.http_client import connect_tokenizer
from axzoo.tokenizer.local import LocalTokenizer, load_tokenizer

Answer = Callable[[str, dict[str, Any]], Any]
"""(path, request) -> response: (status, body), or the JSON of a response with status 200."""

Serve = Callable[[Answer], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server on loopback that responds with the given function; return its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlparse(self.path)
                self._reply(url.path, {key: values[0] for key, values in parse_qs(url.query).items()})

            def do_POST(self) -> None:
                self._reply(self.path, json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def _reply(self, path: str, request: dict[str, Any]) -> None:
                found = answer(path, request)
                status, body = found if isinstance(found, tuple) else (200, json.dumps(found).encode())
                self.send_response(status)
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # the client may close the connection early
                    self.wfile.write(body)

            def log_message(self, *_args: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def tokenizer(bundle: Path) -> LocalTokenizer:
    return load_tokenizer(bundle / "tokenizer")


def _turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    opening = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return opening + [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


class Simple:
    """The simple protocol as implemented by ax-llm's scripts: the status is 200 for every path."""

    def __init__(self, tokenizer: LocalTokenizer) -> None:
        self._tokenizer = tokenizer
        self.paths: list[str] = []

    def __call__(self, path: str, request: dict[str, Any]) -> Any:
        self.paths.append(path)
        if path == "/encode":
            assert request["img_prompt"] is False
            return {"token_ids": self._tokenizer.encode_chat(_turns(request["text"], system="S"))}
        if path == "/decode":
            return {"text": self._tokenizer.decode(request["token_ids"])}
        return {"/bos_id": {"bos_id": -1}, "/eos_id": {"eos_id": 2}}.get(path, "error")


class MultiUser:
    """The multi-user protocol as implemented by ax-llm's scripts."""

    def __init__(self, tokenizer: LocalTokenizer) -> None:
        self._tokenizer = tokenizer
        self.users: dict[str, tuple[list[dict[str, str]], list[int]]] = {}
        self.paths: list[str] = []

    def __call__(self, path: str, request: dict[str, Any]) -> Any:
        self.paths.append(path)
        if path == "/get_uid":
            self.users[f"user {len(self.paths)}"] = ([], [])
            return {"uid": f"user {len(self.paths)}"}
        if request["uid"] not in self.users:
            return {"error": "Invalid uid"}
        messages, pending = self.users[request["uid"]]
        if path == "/reset":
            messages[:] = _turns(system=request["system_prompt"])
            return {"token_ids": []}
        if path == "/encode":
            if "last_reply" in request:
                messages.append({"role": "assistant", "content": request["last_reply"]})
            messages.append({"role": "user", "content": request["text"]})
            return {"token_ids": self._tokenizer.encode_chat(messages), "diff": []}
        if path == "/decode":
            pending += request["token_ids"]
            text = self._tokenizer.decode(pending)
            if "\ufffd" in text:
                return {"text": ""}
            pending.clear()
            return {"text": text}
        return {"/bos_id": {"bos_id": None}, "/eos_id": {"eos_id": 2}}[path]


def test_the_simple_protocol(serve: Serve, tokenizer: LocalTokenizer) -> None:
    server = Simple(tokenizer)
    client = connect_tokenizer(serve(server) + "/")
    assert (client.bos_token_id, client.eos_token_ids) == (None, (2,))
    assert client.encode_chat(_turns("a", "b", "c")) == tokenizer.encode("<system>S<user>c")
    stream = client.stream()
    assert [stream.push(token) for token in tokenizer.encode("a法!")] == ["a", "", "", "法", "!"]
    assert stream.flush() == ""


def test_the_multi_user_protocol(serve: Serve, tokenizer: LocalTokenizer) -> None:
    server = MultiUser(tokenizer)
    client = connect_tokenizer(serve(server))
    assert (client.bos_token_id, client.eos_token_ids) == (None, (2,))
    assert client.encode_chat(_turns("a")) == tokenizer.encode("<user>a")
    server.paths.clear()
    assert client.encode_chat(_turns("a", "b", "c")) == tokenizer.encode("<user>a<assistant>b<user>c")
    assert server.paths == ["/encode"]  # the server has the earlier turns
    assert len(server.users) == 1
    stream = client.stream()
    assert [stream.push(token) for token in tokenizer.encode("a法!")] == ["a", "", "", "法", "!"]
    assert stream.flush() == ""
    assert client.encode_chat(_turns("d", system="S")) == tokenizer.encode("<system>S<user>d")
    # the system message is not sent twice
    assert client.encode_chat(_turns("d", system="S")) == tokenizer.encode("<system>S<user>d")
    client.encode_chat(_turns("d", "", "e", system="S"))
    assert client.encode_chat(_turns("x", "", "e")) == tokenizer.encode("<user>x<assistant><user>e")


def test_an_incomplete_character_does_not_leak_into_the_next_answer(serve: Serve, tokenizer: LocalTokenizer) -> None:
    client = connect_tokenizer(serve(MultiUser(tokenizer)))
    client.encode_chat(_turns("a"))
    stream = client.stream()
    assert [stream.push(token) for token in tokenizer.encode("法")[:2]] == ["", ""]
    assert stream.flush() == ""
    client.encode_chat(_turns("a", "", "b"))
    assert [client.stream().push(token) for token in tokenizer.encode("ok")] == ["o", "k"]


def test_the_conversation_is_sent_again_if_the_server_forgot_the_uid(serve: Serve, tokenizer: LocalTokenizer) -> None:
    server = MultiUser(tokenizer)
    client = connect_tokenizer(serve(server))
    client.encode_chat(_turns("a", system="S"))
    server.users.clear()
    expected = tokenizer.encode("<system>S<user>a<assistant>b<user>c")
    assert client.encode_chat(_turns("a", "b", "c", system="S")) == expected


def _fixed(**answers: Any) -> Answer:
    defaults = {"/bos_id": {"bos_id": 1}, "/eos_id": {"eos_id": 2}}
    return lambda path, _request: answers.get(path.strip("/"), defaults.get(path, (404, b"no")))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"bos_id": {"bos_id": "x"}}, "/bos_id returned 'x': this is not a tokenizer server"),
        ({"bos_id": {}}, "/bos_id returned '': this is not a tokenizer server"),
        ({"eos_id": {"eos_id": -7}}, "/eos_id returned -7"),
        ({"eos_id": {"eos_id": True}}, "/eos_id returned True"),
        ({"eos_id": (200, b"<html>")}, "/eos_id did not return a JSON object"),
        ({"eos_id": (200, b"[" * 100_000)}, "/eos_id did not return a JSON object"),
        ({"eos_id": (500, b"down\xff")}, "/eos_id returned status 500: down"),
        ({"eos_id": (200, b" " * (1 << 25))}, "/eos_id returned more than 16777216 bytes"),
        ({"encode": {"token_ids": [1, -1]}}, "/encode did not return token ids"),
        ({"encode": {"token_ids": "12"}}, "/encode did not return token ids"),
        ({"encode": {"error": "Invalid uid"}}, "/encode did not return token ids: Invalid uid"),
        ({"encode": {"token_ids": [1]}, "decode": {"text": None}}, "/decode did not return text"),
        ({"get_uid": {"uid": "u"}, "encode": (400, b'{"error": "too long"}')}, "status 400: .*too long"),
        ({"get_uid": {"uid": "u"}, "encode": {"token_ids": [1]}, "decode": {}}, "/decode did not return text"),
    ],
)
def test_invalid_responses_are_refused(serve: Serve, answers: dict[str, Any], message: str) -> None:
    def use() -> None:
        client = connect_tokenizer(url)
        client.encode_chat(_turns("a"))
        client.stream().push(1)

    url = serve(_fixed(**answers))
    with pytest.raises(AxzooError, match=message) as error:
        use()
    assert url in str(error.value)


def test_a_server_without_uids_speaks_the_simple_protocol(serve: Serve) -> None:
    for uid in ("error", {"uid": 3}, {}, [], (200, b"{"), (404, b"")):
        client = connect_tokenizer(serve(_fixed(get_uid=uid, encode={"token_ids": [7]})))
        assert client.encode_chat(_turns("a")) == [7]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://", "http://[::1", "http://127.0.0.1:99999", "nothing"])
def test_an_unreachable_server_is_refused(url: str) -> None:
    with pytest.raises(AxzooError, match=r"no tokenizer server responds at|is not a valid URL of a tokenizer server"):
        connect_tokenizer(url)


Protocol = Callable[[LocalTokenizer], Answer]


def _run(capfd: pytest.CaptureFixture[str], bundle: Path, url: str, *arguments: str) -> str:
    server = ["--tokenizer_type", "2", "--filename_tokenizer_model", url]
    assert main(["run", str(bundle), "--greedy", "--max-tokens", "5", "--prompt", "hi", *server, *arguments]) == 0
    return capfd.readouterr().out


@pytest.mark.parametrize("protocol", [Simple, MultiUser])
def test_run_through_a_server(
    bundle: Path, serve: Serve, tokenizer: LocalTokenizer, capfd: pytest.CaptureFixture[str], protocol: Protocol
) -> None:
    found = _run(capfd, bundle, serve(protocol(tokenizer)), "--system", "S")
    local = ["run", str(bundle), "--greedy", "--max-tokens", "5", "--prompt", "hi", "--system", "S"]
    assert main(local) == 0
    # the server keeps an incomplete character at the end
    assert capfd.readouterr().out.rstrip("\ufffd\n") == found.rstrip("\ufffd\n")


def test_run_through_axzoos_own_server(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "axzoo.cli", "tokenizer", "--port", "0", "--model", str(bundle)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().split()[-1]
            arguments: Sequence[str] = ("--system", "S")
            found = _run(capfd, bundle, url, *arguments)
        finally:
            server.terminate()
    assert main(["run", str(bundle), "--greedy", "--max-tokens", "5", "--prompt", "hi", *arguments]) == 0
    assert capfd.readouterr().out.rstrip("\ufffd\n") == found.rstrip("\ufffd\n")
