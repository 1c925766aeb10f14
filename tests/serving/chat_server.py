"""`axzoo serve` in a process of its own."""

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


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    line: str

    @property
    def port(self) -> int:
        return int(self.line.rsplit(":", 1)[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
        """Status and JSON of an answer, by a client that checks nothing."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def chat(self, **body: Any) -> tuple[int, dict[str, Any]]:
        return self.ask("POST", "/v1/chat/completions", json.dumps(body).encode())

    @property
    def resident_mb(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/status").read_text().split()
        return int(fields[fields.index("VmRSS:") + 1]) / 1024


@contextmanager
def chat_server(bundle: Path, *arguments: str) -> Iterator[Server]:
    """A server on a free port."""
    command = [sys.executable, "-m", "axzoo.cli", "serve", str(bundle), "--port", "0", *arguments]
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
