"""Runs `axzoo serve` in a separate process."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ACCESS = " | INFO     | axzoo.serving.doors:"


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    line: str
    errors: Path

    @property
    def port(self) -> int:
        return int(self.line.rsplit(":", 1)[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Send a request without any checks; return the status and the JSON body."""
        status, text, _ = self.send(method, path, body, headers)
        return status, json.loads(text)

    def send(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, str, dict[str, str]]:
        """Send a request without any checks; return the status, the body and the headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read().decode(), {k.lower(): v for k, v in response.getheaders()}
        finally:
            connection.close()

    def ask_text(self, **body: Any) -> tuple[int, str]:
        """Like `chat`, but return the body as text, because a stream is not JSON."""
        return self.send("POST", "/v1/chat/completions", json.dumps(body).encode())[:2]

    def chat(self, **body: Any) -> tuple[int, dict[str, Any]]:
        return self.ask("POST", "/v1/chat/completions", json.dumps(body).encode())

    @property
    def log(self) -> str:
        """The stderr of the server, without the access log."""
        return "".join(line for line in self._lines() if ACCESS not in line)

    def logged(self, text: str) -> bool:
        """Whether a message of the access log contains a text. Messages are written a moment after the response."""
        until = time.monotonic() + 5
        while not any(text in line for line in self._lines() if ACCESS in line):
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def _lines(self) -> list[str]:
        return self.errors.read_text().splitlines(keepends=True)

    @property
    def resident_mb(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/status").read_text().split()
        return int(fields[fields.index("VmRSS:") + 1]) / 1024


@contextmanager
def chat_server(
    bundle: Path, *arguments: str, program: Sequence[str] = ("-m", "axzoo.cli", "serve")
) -> Iterator[Server]:
    """Run a server on a free port, and check that its log has no traceback."""
    command = [sys.executable, *program, str(bundle), "--port", "0", *arguments]
    with tempfile.NamedTemporaryFile("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        with _terminating(process) as line:
            running = Server(process, line, Path(errors.name))
            yield running
        assert "Traceback" not in running.log, running.log


@contextmanager
def _terminating(process: subprocess.Popen[str]) -> Iterator[str]:
    """Yield the first line of output, then terminate the process."""
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        finally:
            process.kill()
            process.stdout.close()
