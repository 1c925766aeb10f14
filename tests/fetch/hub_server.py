"""A small server for the hub's protocol: repository info, resolve with redirects to a second host, ranges.

Large files live behind a redirect to another port (another origin, as the hub's CDN is). `requests` records what was
asked, so that tests can tell a resumed transfer from a new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = 1 << 20
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Hub:
    """One repository. `served` overrides the content sent for a file; `break_at` interrupts a transfer after that many
    bytes."""

    repo: str
    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main", COMMIT)
    token: str | None = None
    gated: bool = False
    info: bytes | None = None
    served: dict[str, bytes] = field(default_factory=dict)
    break_at: dict[str, int] = field(default_factory=dict)
    gentle: bool = False
    ranges: bool = True
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    endpoint: str = ""
    cdn: str = ""

    def asked(self, method: str, word: str) -> list[dict[str, str]]:
        """The headers of every request with this method whose path contains the word."""
        return [headers for made, path, headers in self.requests if made == method and word in path]

    def info_json(self) -> bytes:
        if self.info is not None:
            return self.info
        siblings = []
        for name, data in self.files.items():
            entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": blob_id(data)}
            if len(data) >= LARGE:
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        return json.dumps({"id": self.repo, "sha": COMMIT, "siblings": siblings}).encode()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub, kind)) for kind in (_HubHandler, _CdnHandler)]
    threads = [threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}) for server in servers]
    hub.endpoint, hub.cdn = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def _handler(hub: Hub, kind: type[_Handler]) -> type[_Handler]:
    return type(kind.__name__, (kind,), {"hub": hub})


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._record()

    def do_HEAD(self) -> None:
        self._record()

    def _record(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.hub.requests.append((self.command, self.path, headers))
        self.answer(unquote(urlsplit(self.path).path))

    def answer(self, path: str) -> None:
        raise NotImplementedError

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def send_file(self, name: str, headers: dict[str, str]) -> None:
        data = self.hub.served.get(name, self.hub.files[name])
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        wanted = wanted if self.hub.ranges else None
        start = int(wanted[1]) if wanted else 0
        if wanted:
            headers = headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        stop = self.hub.break_at.pop(name, None)
        if stop is None or self.command == "HEAD":
            self.reply(206 if wanted else 200, headers, data[start:])
            return
        self.send_response(206 if wanted else 200)
        for key, value in {**headers, "Content-Length": str(len(data) - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data[start:stop])
        self.wfile.flush()
        self.close_connection = True
        if self.hub.gentle:
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            _reset(self.connection)

    def log_message(self, *_: object) -> None:
        pass


def _reset(connection: socket.socket) -> None:
    """Resets the connection after everything sent has arrived."""
    while struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]:
        time.sleep(0.001)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class _CdnHandler(_Handler):
    def answer(self, path: str) -> None:
        self.send_file(path.removeprefix("/cdn/"), {"Content-Type": "application/octet-stream"})


class _HubHandler(_Handler):
    def answer(self, path: str) -> None:
        hub = self.hub
        if info := re.fullmatch(rf"/api/models/{re.escape(hub.repo)}/revision/(.+)", path):
            self._info(info[1])
        elif resolve := re.fullmatch(rf"/{re.escape(hub.repo)}/resolve/{COMMIT}/(.+)", path):
            self._resolve(resolve[1])
        else:
            self.reply(404, {"X-Error-Code": "RepoNotFound"})

    def _allowed(self) -> bool:
        return self.hub.token is None or self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _info(self, revision: str) -> None:
        if not self.hub.gated and not self._allowed():
            self.reply(401, {})
        elif revision not in self.hub.revisions:
            self.reply(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            self.reply(200, {"Content-Type": "application/json"}, self.hub.info_json())

    def _resolve(self, name: str) -> None:
        data = self.hub.files.get(name)
        if self.hub.gated and not self._allowed():
            self.reply(401, {"X-Error-Code": "GatedRepo"})
        elif data is None:
            self.reply(404, {"X-Error-Code": "EntryNotFound"})
        elif len(data) >= LARGE:
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            linked = {"X-Linked-Etag": etag, "X-Linked-Size": str(len(data)), "X-Repo-Commit": COMMIT}
            self.reply(302, linked | {"Location": f"{self.hub.cdn}/cdn/{name}"})
        else:
            self.send_file(name, {"ETag": f'"{blob_id(data)}"', "X-Repo-Commit": COMMIT})
