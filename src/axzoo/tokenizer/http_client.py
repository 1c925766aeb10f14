"""A client for tokenizer servers that speak ax-llm's protocols; the remote counterpart of tokenizer/local.py.

There are two protocols. The simple one encodes a single question: the server applies its chat template and keeps no
history. The multi-user one assigns a uid to every client and keeps its conversation. A server that responds to /get_uid
speaks the multi-user protocol.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

import httpx2

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.added_tokens import is_token_id
from axzoo.tokenizer.chat_template import Message
from axzoo.tokenizer.stream import StreamDecoder

_TIMEOUT_SECONDS = 10
"""Timeout for connecting and for a response. ax-llm's client waits one second."""
_MAX_RESPONSE_BYTES = 1 << 24


class HttpTokenizer(Protocol):
    """The operations of both protocols. The server always applies its chat template; plain text cannot be encoded."""

    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a conversation, up to where the answer begins.

        Raises AxzooError when the server does not respond, or its response does not follow the protocol.
        """

    def stream(self) -> StreamDecoder | ServerTextStream:
        """Return a decoder that takes ids one by one."""


def connect_tokenizer(url: str) -> HttpTokenizer:
    """Connect to a server, and find out its protocol and the ids of its special tokens.

    Raises AxzooError when the URL is not valid, or no tokenizer server responds there.
    """
    server = _ServerConnection(url)
    uid = _get_uid(server)
    query = "" if uid is None else f"?uid={quote(uid)}"
    bos, eos = (_special_id(server.get(f"/{name}{query}"), name, server) for name in ("bos_id", "eos_id"))
    ends = () if eos is None else (eos,)
    return SimpleTokenizer(server, bos, ends) if uid is None else MultiUserTokenizer(server, bos, ends, uid)


@dataclass(frozen=True)
class SimpleTokenizer:
    """A client of the simple protocol. Only the last question of a conversation is sent."""

    server: _ServerConnection
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        body = _question(messages[-1]["content"])
        return _ids(self.server.post("/encode", body), self.server)

    def decode(self, ids: Sequence[int]) -> str:
        return _text(self.server.post("/decode", {"token_ids": list(ids)}), self.server)

    def stream(self) -> StreamDecoder:
        return StreamDecoder(self.decode)


class MultiUserTokenizer:
    """A client of the multi-user protocol. The server keeps the conversation.

    The client remembers what it has sent, so that a further question takes one request. Any other conversation, or one
    that an error or Ctrl-C has interrupted, is sent from the start under a new uid.
    """

    def __init__(
        self, server: _ServerConnection, bos_token_id: int | None, eos_token_ids: tuple[int, ...], unused_uid: str
    ) -> None:
        self.bos_token_id = bos_token_id
        self.eos_token_ids = eos_token_ids
        self._server = server
        self._unused_uid: str | None = unused_uid
        self._uid = ""
        self._sent: list[Message] = []

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        sent, self._sent = self._sent, []
        ids: list[int] = []
        if sent and sent == messages[: len(sent)]:
            with contextlib.suppress(AxzooError):  # the server may have forgotten the uid
                ids = self._send_questions(messages, len(sent))
        if not ids:
            ids = self._send_questions(messages, self._start_conversation(messages))
        self._sent = list(messages)
        return ids

    def decode(self, token_id: int) -> str:
        """Return the text that this id completes. The server holds back incomplete characters."""
        return _text(self._server.post("/decode", {"uid": self._uid, "token_ids": [token_id]}), self._server)

    def stream(self) -> ServerTextStream:
        return ServerTextStream(self)

    def forget(self) -> None:
        """Use a new uid for the next conversation, so that no incomplete character is left on the server."""
        self._sent = []

    def _start_conversation(self, messages: Sequence[Message]) -> int:
        """Get a new uid and send the system message, if there is one. Return the number of messages sent."""
        uid, self._unused_uid = self._unused_uid or _get_uid(self._server), None
        if uid is None:
            raise AxzooError(f"{self._server.url} no longer assigns uids: restart the tokenizer server")
        self._uid = uid
        if messages[0]["role"] != "system":
            return 0
        self._server.post("/reset", {"uid": uid, "system_prompt": messages[0]["content"]})
        return 1

    def _send_questions(self, messages: Sequence[Message], start: int) -> list[int]:
        """Send the questions from message `start` on, each with the answer before it. Return the ids of the last."""
        ids: list[int] = []
        for index in range(start, len(messages)):
            if messages[index]["role"] == "user":
                body = {"uid": self._uid, **_question(messages[index]["content"])}
                if index and messages[index - 1]["role"] == "assistant":
                    body["last_reply"] = messages[index - 1]["content"]
                ids = _ids(self._server.post("/encode", body), self._server)
        return ids


_PICTURE = re.compile(r"<image>(<unk>)+</image>\n")


def _question(text: str) -> dict[str, Any]:
    """The keys of /encode for a question. The server adds what stands for a picture without slices at its start."""
    picture = _PICTURE.match(text)
    return {"text": text[picture.end() :] if picture else text, "img_prompt": picture is not None}


class ServerTextStream:
    """A text stream decoded by a server, which holds back incomplete characters itself."""

    def __init__(self, tokenizer: MultiUserTokenizer) -> None:
        self._tokenizer = tokenizer
        self._is_pending = False

    def push(self, token_id: int) -> str:
        text = self._tokenizer.decode(token_id)
        self._is_pending = not text
        return text

    def flush(self, truncated: bool = False) -> str:
        """Return an empty string: an incomplete character stays on the server."""
        if self._is_pending:
            self._tokenizer.forget()
        return ""


class _ServerConnection:
    """Sends requests to a tokenizer server and reads its JSON responses."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            # ignore proxies from the environment: tokenizer servers run on the local network
            self._client = httpx2.Client(base_url=self.url, timeout=_TIMEOUT_SECONDS, trust_env=False)
        except Exception as error:  # an invalid URL raises many kinds of exceptions
            raise AxzooError(
                f"{url} is not a valid URL of a tokenizer server, such as http://127.0.0.1:12345: {error}"
            ) from None

    def get(self, path: str) -> dict[str, Any]:
        return self._request_json("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._request_json("POST", path, body)

    def _request_json(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        status, data = self.request(method, path, body)
        if status != 200:
            raise AxzooError(f"{self.url}{path} returned status {status}: {data[:200].decode(errors='replace')}")
        try:
            response = json.loads(data)
        except (ValueError, RecursionError):
            response = None
        if not isinstance(response, dict):
            raise AxzooError(f"{self.url}{path} did not return a JSON object: this is not a tokenizer server")
        return response

    def request(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, bytes]:
        """Return the status and the body of the response."""
        data = bytearray()
        try:
            with self._client.stream(method, path, json=body) as response:
                for piece in response.iter_bytes():
                    data += piece
                    if len(data) > _MAX_RESPONSE_BYTES:
                        raise AxzooError(f"{self.url}{path} returned more than {_MAX_RESPONSE_BYTES} bytes")
                return response.status_code, bytes(data)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise AxzooError(
                f"no tokenizer server responds at {self.url} ({reason}): start one with `axzoo tokenizer --port PORT "
                "--model DIR`, or pass another URL to --filename_tokenizer_model"
            ) from None
        except UnicodeEncodeError:
            raise AxzooError("the text is not valid UTF-8 and cannot be tokenized") from None


def _get_uid(server: _ServerConnection) -> str | None:
    """Request a new uid. Return None if the server does not assign any, because it speaks the simple protocol."""
    status, data = server.request("GET", "/get_uid", None)
    try:
        uid = json.loads(data).get("uid") if status == 200 else None
    except (ValueError, RecursionError, AttributeError):
        return None
    return uid if isinstance(uid, str) else None


def _special_id(response: dict[str, Any], name: str, server: _ServerConnection) -> int | None:
    """Read the id of a special token; -1 and null mean that the model has no such token."""
    value = response.get(name, "")
    if value is None or value == -1:
        return None
    if not is_token_id(value):
        raise AxzooError(f"{server.url}/{name} returned {value!r}: this is not a tokenizer server")
    return int(value)


def _ids(response: dict[str, Any], server: _ServerConnection) -> list[int]:
    ids = response.get("token_ids")
    if not isinstance(ids, list) or not all(map(is_token_id, ids)):
        raise AxzooError(f"{server.url}/encode did not return token ids{_error_of(response)}")
    return ids


def _text(response: dict[str, Any], server: _ServerConnection) -> str:
    text = response.get("text")
    if not isinstance(text, str):
        raise AxzooError(f"{server.url}/decode did not return text{_error_of(response)}")
    return text


def _error_of(response: dict[str, Any]) -> str:
    return f": {response['error']}" if "error" in response else ""
