"""Runs a tokenizer server in a separate process, with a plain HTTP client."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHORT_TIMEOUTS = """
import sys
from pathlib import Path
from axzoo.serving.tokenizer_app import TOO_MANY_CONNECTIONS, make_app
from axzoo.runtime.setup import load_served_tokenizer
from axzoo.serving.tokenizer_service import make_service
from axzoo.serving import http as server
from axzoo.serving.origins import AccessRules
server.REQUEST_TIMEOUT = 0.5
app = make_app(make_service(load_served_tokenizer(Path(sys.argv[1]))), AccessRules(), body_seconds=0.5)
server.serve(app, "127.0.0.1", 0, lambda port: print(f"ready :{port}", flush=True), TOO_MANY_CONNECTIONS)
"""


@dataclass(frozen=True)
class Answer:
    status: int
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    line: str

    @property
    def port(self) -> int:
        return int(self.line.rsplit(":", 1)[1])

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def post(self, path: str, body: object) -> Answer:
        return self.ask("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            content = json.loads(response.read())
            return Answer(response.status, content, {k.lower(): v for k, v in response.getheaders()})
        finally:
            connection.close()


@contextmanager
def tokenizer_server(folder: Path, *arguments: str) -> Iterator[Server]:
    """Run `axzoo tokenizer` on a free port."""
    command = [sys.executable, "-m", "axzoo.cli", "tokenizer", "--port", "0", "--model", str(folder), *arguments]
    with _running(command) as server:
        yield server


@contextmanager
def short_timeout_server(folder: Path) -> Iterator[Server]:
    """Run a server with timeouts of half a second."""
    with _running([sys.executable, "-c", SHORT_TIMEOUTS, str(folder)]) as server:
        yield server


@contextmanager
def _running(command: list[str]) -> Iterator[Server]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Server(process, process.stdout.readline().strip())
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        finally:
            process.kill()
            process.stdout.close()
