"""A tokenizer server for a board without axzoo. `axzoo package` copies this file; it needs Python 3.9 and transformers.

It answers both protocols of the boards' host programs: the plain one (/encode, /decode, /bos_id, /eos_id), and the one
with a conversation per user (/get_uid, /reset, and a `uid` in each request). It listens on the local machine only.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import uuid
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import takewhile
from operator import eq
from typing import Any
from urllib.parse import parse_qsl, urlsplit

SETTINGS: dict[str, Any] = {}
"""What the tokenizer's files do not say; `axzoo package` fills it in.

`eos_id` ends an answer. Without `chat`, prompts are plain text. Models without a chat template have `markers`, the text
before and after a message by role, and a `generation_prompt`. `picture` is the text that stands for a picture.
"""

USERS = 64
BODY_BYTES = 1 << 20
SECONDS = 10
"""Limits: conversations in memory, the size of a request, and the time to send it."""


class BadRequest(Exception):
    """A request that cannot be answered; the message is for the client."""


class Talk:
    """The messages of one user, and the ids that the host program already has."""

    def __init__(self, system_prompt: str) -> None:
        self.messages: list[dict[str, str]] = []
        if system_prompt:
            self.messages.append({"role": "system", "content": system_prompt})
        self.sent: list[int] = []
        self.pending: list[int] = []  # ids of a character that is not complete


class Service:
    """The answers to requests, for one tokenizer folder."""

    def __init__(self, folder: str, system_prompt: str) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.anchor: list[int] = self.tokenizer.encode("a", add_special_tokens=False)[-1:]
        self.anchor_text = self._text_of(self.anchor)
        self.system_prompt = system_prompt
        self.users: OrderedDict[str, Talk] = OrderedDict()
        self.lock = threading.Lock()

    def answer(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """The JSON answer to a request. Raises BadRequest."""
        with self.lock:
            if path == "/get_uid":
                return {"uid": self._new_user()}
            user = self._user(request)
            if path == "/bos_id":
                return {"bos_id": _number(self.tokenizer.bos_token_id)}
            if path == "/eos_id":
                return {"eos_id": _number(SETTINGS.get("eos_id", self.tokenizer.eos_token_id))}
            if path == "/reset":
                return self._reset(_text(request, "uid"), _text(request, "system_prompt", self.system_prompt))
            if path == "/encode":
                return self._encode(user, request)
            if path == "/decode":
                return {"text": self._decode(user, _ids(request))}
        raise BadRequest(f"no such path: {path}")

    def _new_user(self) -> str:
        name = uuid.uuid4().hex
        self.users[name] = Talk(self.system_prompt)
        while len(self.users) > USERS:
            self.users.popitem(last=False)
        return name

    def _user(self, request: dict[str, Any]) -> Talk | None:
        """The conversation of a request; None for the plain protocol."""
        if "uid" not in request:
            return None
        name = _text(request, "uid")
        if name not in self.users:
            raise BadRequest("Invalid uid")
        self.users.move_to_end(name)
        return self.users[name]

    def _reset(self, name: str, system_prompt: str) -> dict[str, Any]:
        self.users[name] = user = Talk(system_prompt)
        user.sent = self._render(user.messages, False) if user.messages else []
        return {"token_ids": user.sent}

    def _encode(self, user: Talk | None, request: dict[str, Any]) -> dict[str, Any]:
        text = _text(request, "text")
        if request.get("img_prompt"):
            if not SETTINGS.get("picture"):
                raise BadRequest("this model has no vision tower: send the question without a picture")
            text = SETTINGS["picture"] + text
        if user is None:
            system = Talk(self.system_prompt).messages
            return {"token_ids": self._render([*system, {"role": "user", "content": text}], True)}
        if user.messages and user.messages[-1]["role"] == "user":
            reply = _text(request, "last_reply", "")
            if reply:
                user.messages.append({"role": "assistant", "content": reply})
                user.sent = self._render(user.messages, False)
            else:  # the question was stopped before it was answered
                user.messages.pop()
        user.messages.append({"role": "user", "content": text})
        prompt = self._render(user.messages, True)
        same = sum(1 for _ in takewhile(bool, map(eq, user.sent, prompt)))
        user.sent, user.pending = prompt, []
        return {"token_ids": prompt, "diff": prompt[same:]}

    def _render(self, messages: list[dict[str, str]], question: bool) -> list[int]:
        markers = SETTINGS.get("markers")
        if markers:
            parts = [(markers[message["role"]], message["content"]) for message in messages]
            text = "".join(before + content + after for (before, after), content in parts)
            text += SETTINGS["generation_prompt"] if question else ""
            ids = list(self.tokenizer.encode(text, add_special_tokens=False))
            first = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
            return ids if ids[: len(first)] == first else first + ids
        if not SETTINGS.get("chat", True) or not self.tokenizer.chat_template:
            return list(self.tokenizer.encode("".join(message["content"] for message in messages)))
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=question)
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _text_of(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _decode(self, user: Talk | None, ids: list[int]) -> str:
        """Text of the ids. For a user, bytes of an incomplete character wait for the next request."""
        waiting = [*user.pending, *ids] if user is not None else ids
        text = self._text_of([*self.anchor, *waiting])[len(self.anchor_text) :]  # alone, a piece loses its blank
        if user is None:
            return text
        incomplete = text.endswith("\N{REPLACEMENT CHARACTER}") and len(waiting) < 8
        user.pending = waiting if incomplete else []
        return "" if incomplete else text


def _number(value: int | None) -> int:
    return -1 if value is None else value


def _text(request: dict[str, Any], key: str, default: str | None = None) -> str:
    value = request.get(key, default)
    if not isinstance(value, str):
        raise BadRequest(f"{key} must be a string")
    return value


def _ids(request: dict[str, Any]) -> list[int]:
    ids = request.get("token_ids")
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 1 << 31 for i in ids):
        raise BadRequest("token_ids must be a list of token ids")
    return ids


class Handler(BaseHTTPRequestHandler):
    """One connection. The server's `service` answers."""

    timeout = SECONDS
    server: Any

    def do_GET(self) -> None:
        self._respond(dict(parse_qsl(urlsplit(self.path).query)))

    def do_POST(self) -> None:
        try:
            length = int(self.headers.get("Content-Length") or 0)
        except ValueError:
            length = -1
        if not 0 <= length <= BODY_BYTES:
            self.rfile.read(max(0, min(length, 4 * BODY_BYTES)))  # or the client would not read the answer
            self._send(413, {"error": f"a request may have {BODY_BYTES} bytes"})
            return
        try:
            request = json.loads(self.rfile.read(length) or b"{}")
        except ValueError:
            request = None
        if isinstance(request, dict):
            self._respond(request)
        else:
            self._send(400, {"error": "the body must be a JSON object"})

    def _respond(self, request: dict[str, Any]) -> None:
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        from_page = bool(self.headers.get("Origin") or self.headers.get("Referer"))
        from_page |= self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
        if host not in ("localhost", "127.0.0.1", "[::1]", "") or from_page:
            self._send(403, {"error": "only programs on this machine are answered"})  # web pages are not
            return
        try:
            self._send(200, self.server.service.answer(urlsplit(self.path).path, request))
        except BadRequest as error:
            self._send(400, {"error": str(error)})
        except Exception as error:  # a template or tokenizer may raise anything
            self._send(500, {"error": f"{type(error).__name__}: {error}"[:500]})

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: Any) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser(description="Tokenizer server for the boards' host programs.")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--model_id", default="tokenizer", help="folder of the tokenizer")
    parser.add_argument("--content", default="", help="system prompt")
    args = parser.parse_args()
    try:
        service = Service(args.model_id, args.content)
    except ImportError as error:
        print(f"{sys.argv[0]}: {error}: install transformers", file=sys.stderr)
        return 1
    server = ThreadingHTTPServer((args.host, args.port), Handler)
    server.daemon_threads = True
    server.service = service  # type: ignore[attr-defined]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        print(f"listening on http://{args.host}:{server.server_port}", flush=True)
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
