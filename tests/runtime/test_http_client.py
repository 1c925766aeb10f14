"""The tokenizer client against servers of either protocol, and `axzoo run` through them."""

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
"""(path, what was sent) -> what is answered: (status, body), or the JSON of a 200."""

Serve = Callable[[Answer], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server on loopback that answers by a function; gives its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlparse(self.path)
                self._reply(url.path, {key: values[0] for key, values in parse_qs(url.query).items()})

            def do_POST(self) -> None:
                self._reply(self.path, json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def _reply(self, path: str, sent: dict[str, Any]) -> None:
                found = answer(path, sent)
                status, body = found if isinstance(found, tuple) else (200, json.dumps(found).encode())
                self.send_response(status)
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # a client that has seen enough
                    self.wfile.write(body)

            def log_message(self, *_words: Any) -> None:
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
    """The simple protocol as ax-llm's scripts speak it: whatever the path, the status is 200."""

    def __init__(self, tokenizer: LocalTokenizer) -> None:
        self._tokenizer = tokenizer
        self.asked: list[str] = []

    def __call__(self, path: str, sent: dict[str, Any]) -> Any:
        self.asked.append(path)
        if path == "/encode":
            assert sent["img_prompt"] is False
            return {"token_ids": self._tokenizer.encode_chat(_turns(sent["text"], system="S"))}
        if path == "/decode":
            return {"text": self._tokenizer.decode(sent["token_ids"])}
        return {"/bos_id": {"bos_id": -1}, "/eos_id": {"eos_id": 2}}.get(path, "error")


class MultiUser:
    """The multi-user protocol as ax-llm's scripts speak it."""

    def __init__(self, tokenizer: LocalTokenizer) -> None:
        self._tokenizer = tokenizer
        self.users: dict[str, tuple[list[dict[str, str]], list[int]]] = {}
        self.asked: list[str] = []

    def __call__(self, path: str, sent: dict[str, Any]) -> Any:
        self.asked.append(path)
        if path == "/get_uid":
            self.users[f"user {len(self.asked)}"] = ([], [])
            return {"uid": f"user {len(self.asked)}"}
        if sent["uid"] not in self.users:
            return {"error": "Invalid uid"}
        messages, held = self.users[sent["uid"]]
        if path == "/reset":
            messages[:] = _turns(system=sent["system_prompt"])
            return {"token_ids": []}
        if path == "/encode":
            if "last_reply" in sent:
                messages.append({"role": "assistant", "content": sent["last_reply"]})
            messages.append({"role": "user", "content": sent["text"]})
            return {"token_ids": self._tokenizer.encode_chat(messages), "diff": []}
        if path == "/decode":
            held += sent["token_ids"]
            text = self._tokenizer.decode(held)
            if "\ufffd" in text:
                return {"text": ""}
            held.clear()
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
    server.asked.clear()
    assert client.encode_chat(_turns("a", "b", "c")) == tokenizer.encode("<user>a<assistant>b<user>c")
    assert server.asked == ["/encode"]  # the server knows the rest
    assert len(server.users) == 1
    stream = client.stream()
    assert [stream.push(token) for token in tokenizer.encode("a法!")] == ["a", "", "", "法", "!"]
    assert stream.flush() == ""
    assert client.encode_chat(_turns("d", system="S")) == tokenizer.encode("<system>S<user>d")
    assert client.encode_chat(_turns("d", system="S")) == tokenizer.encode("<system>S<user>d")  # not twice
    client.encode_chat(_turns("d", "", "e", system="S"))
    assert client.encode_chat(_turns("x", "", "e")) == tokenizer.encode("<user>x<assistant><user>e")


def test_half_a_character_does_not_stay_with_the_next_answer(serve: Serve, tokenizer: LocalTokenizer) -> None:
    client = connect_tokenizer(serve(MultiUser(tokenizer)))
    client.encode_chat(_turns("a"))
    stream = client.stream()
    assert [stream.push(token) for token in tokenizer.encode("法")[:2]] == ["", ""]
    assert stream.flush() == ""
    client.encode_chat(_turns("a", "", "b"))
    assert [client.stream().push(token) for token in tokenizer.encode("ok")] == ["o", "k"]


def test_a_server_that_forgot_the_uid_is_told_again(serve: Serve, tokenizer: LocalTokenizer) -> None:
    server = MultiUser(tokenizer)
    client = connect_tokenizer(serve(server))
    client.encode_chat(_turns("a", system="S"))
    server.users.clear()
    expected = tokenizer.encode("<system>S<user>a<assistant>b<user>c")
    assert client.encode_chat(_turns("a", "b", "c", system="S")) == expected


def _fixed(**answers: Any) -> Answer:
    usual = {"/bos_id": {"bos_id": 1}, "/eos_id": {"eos_id": 2}}
    return lambda path, _sent: answers.get(path.strip("/"), usual.get(path, (404, b"no")))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"bos_id": {"bos_id": "x"}}, "/bos_id answered 'x': it is no tokenizer server"),
        ({"bos_id": {}}, "/bos_id answered '': it is no tokenizer server"),
        ({"eos_id": {"eos_id": -7}}, "/eos_id answered -7"),
        ({"eos_id": {"eos_id": True}}, "/eos_id answered True"),
        ({"eos_id": (200, b"<html>")}, "/eos_id answered with no JSON object"),
        ({"eos_id": (200, b"[" * 100_000)}, "/eos_id answered with no JSON object"),
        ({"eos_id": (500, b"down\xff")}, "/eos_id answered with status 500: down"),
        ({"eos_id": (200, b" " * (1 << 25))}, "/eos_id answered with more than 16777216 bytes"),
        ({"encode": {"token_ids": [1, -1]}}, "/encode answered with no token ids"),
        ({"encode": {"token_ids": "12"}}, "/encode answered with no token ids"),
        ({"encode": {"error": "Invalid uid"}}, "/encode answered with no token ids: Invalid uid"),
        ({"encode": {"token_ids": [1]}, "decode": {"text": None}}, "/decode answered with no text"),
        ({"get_uid": {"uid": "u"}, "encode": (400, b'{"error": "too long"}')}, "status 400: .*too long"),
        ({"get_uid": {"uid": "u"}, "encode": {"token_ids": [1]}, "decode": {}}, "/decode answered with no text"),
    ],
)
def test_servers_that_are_none(serve: Serve, answers: dict[str, Any], message: str) -> None:
    def use() -> None:
        client = connect_tokenizer(url)
        client.encode_chat(_turns("a"))
        client.stream().push(1)

    url = serve(_fixed(**answers))
    with pytest.raises(AxzooError, match=message) as error:
        use()
    assert url in str(error.value)


def test_what_is_no_uid_means_the_simple_protocol(serve: Serve) -> None:
    for uid in ("error", {"uid": 3}, {}, [], (200, b"{"), (404, b"")):
        client = connect_tokenizer(serve(_fixed(get_uid=uid, encode={"token_ids": [7]})))
        assert client.encode_chat(_turns("a")) == [7]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://", "http://[::1", "http://127.0.0.1:99999", "nothing"])
def test_nobody_there(url: str) -> None:
    with pytest.raises(AxzooError, match=r"no tokenizer server answers at|is no URL of a tokenizer server"):
        connect_tokenizer(url)


Protocol = Callable[[LocalTokenizer], Answer]


def _run(capfd: pytest.CaptureFixture[str], bundle: Path, url: str, *words: str) -> str:
    server = ["--tokenizer_type", "2", "--filename_tokenizer_model", url]
    assert main(["run", str(bundle), "--greedy", "--max-tokens", "5", "--prompt", "hi", *server, *words]) == 0
    return capfd.readouterr().out


@pytest.mark.parametrize("protocol", [Simple, MultiUser])
def test_run_through_a_server(
    bundle: Path, serve: Serve, tokenizer: LocalTokenizer, capfd: pytest.CaptureFixture[str], protocol: Protocol
) -> None:
    found = _run(capfd, bundle, serve(protocol(tokenizer)), "--system", "S")
    local = ["run", str(bundle), "--greedy", "--max-tokens", "5", "--prompt", "hi", "--system", "S"]
    assert main(local) == 0
    # a server that holds back half a character at the end keeps it
    assert capfd.readouterr().out.rstrip("\ufffd\n") == found.rstrip("\ufffd\n")


def test_run_through_axzoos_own_server(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "axzoo.cli", "tokenizer", "--port", "0", "--model", str(bundle)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().split()[-1]
            words: Sequence[str] = ("--system", "S")
            found = _run(capfd, bundle, url, *words)
        finally:
            server.terminate()
    assert main(["run", str(bundle), "--greedy", "--max-tokens", "5", "--prompt", "hi", *words]) == 0
    assert capfd.readouterr().out.rstrip("\ufffd\n") == found.rstrip("\ufffd\n")
