"""A tokenizer behind HTTP: the client of ax-llm's tokenizer servers, in place of tokenizer/local.py.

There are two protocols. The simple one encodes one question: the server puts it into its chat template and keeps no
history. The multi-user one gives every client a uid and keeps its conversation; a server that answers /get_uid is
taken to speak it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

import httpx2

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.chat_template import Message
from axzoo.tokenizer.folder import is_token_id
from axzoo.tokenizer.stream import StreamDecoder

_SECONDS = 10
"""To wait for a connection and for an answer; ax-llm's client waits one second."""
_MAX_BYTES = 1 << 24
"""Of an answer."""


class HttpTokenizer(Protocol):
    """What both protocols offer. Texts cannot be encoded without the chat template: the server always applies it."""

    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to where the answer begins.

        Raises AxzooError when the server does not answer, or not by the protocol.
        """

    def stream(self) -> StreamDecoder | HeldByServer:
        """A decoder that takes ids one by one."""


def connect_tokenizer(url: str) -> HttpTokenizer:
    """Asks a server for its protocol and its ids of the special tokens.

    Raises AxzooError when the URL is none, or no tokenizer server answers there.
    """
    server = _Server(url)
    uid = _get_uid(server)
    query = "" if uid is None else f"?uid={quote(uid)}"
    bos, eos = (_special_id(server.get(f"/{name}{query}"), name, server) for name in ("bos_id", "eos_id"))
    ends = () if eos is None else (eos,)
    return SimpleTokenizer(server, bos, ends) if uid is None else MultiUserTokenizer(server, bos, ends, uid)


@dataclass(frozen=True)
class SimpleTokenizer:
    """The simple protocol: of a conversation it is told the last question only."""

    server: _Server
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        body = {"text": messages[-1]["content"], "img_prompt": False}
        return _ids(self.server.post("/encode", body), self.server)

    def decode(self, ids: Sequence[int]) -> str:
        return _text(self.server.post("/decode", {"token_ids": list(ids)}), self.server)

    def stream(self) -> StreamDecoder:
        return StreamDecoder(self.decode)


class MultiUserTokenizer:
    """The multi-user protocol: the server keeps the conversation.

    What it was told is remembered, so that a further question is one request. Whatever else is asked for (another
    conversation, one that an error or Ctrl-C tore) is told from the beginning under a new uid.
    """

    def __init__(
        self, server: _Server, bos_token_id: int | None, eos_token_ids: tuple[int, ...], unused_uid: str
    ) -> None:
        self.bos_token_id = bos_token_id
        self.eos_token_ids = eos_token_ids
        self._server = server
        self._unused_uid: str | None = unused_uid
        self._uid = ""
        self._told: list[Message] = []

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        told, self._told = self._told, []
        ids: list[int] = []
        if told and told == messages[: len(told)]:
            with contextlib.suppress(AxzooError):  # the server may have forgotten the uid
                ids = self._tell(messages, len(told))
        if not ids:
            ids = self._tell(messages, self._begin(messages))
        self._told = list(messages)
        return ids

    def decode(self, token_id: int) -> str:
        """What became readable with this id: the server holds back half characters."""
        return _text(self._server.post("/decode", {"uid": self._uid, "token_ids": [token_id]}), self._server)

    def stream(self) -> HeldByServer:
        return HeldByServer(self)

    def forget(self) -> None:
        """The next conversation is told under a new uid, for which the server holds nothing back."""
        self._told = []

    def _begin(self, messages: Sequence[Message]) -> int:
        """Takes a new uid and tells it the system message; returns how many messages that were."""
        uid, self._unused_uid = self._unused_uid or _get_uid(self._server), None
        if uid is None:
            raise AxzooError(f"{self._server.url} gives no uid any more: start the tokenizer server again")
        self._uid = uid
        if messages[0]["role"] != "system":
            return 0
        self._server.post("/reset", {"uid": uid, "system_prompt": messages[0]["content"]})
        return 1

    def _tell(self, messages: Sequence[Message], start: int) -> list[int]:
        """Asks the questions from message `start` on, each with the answer before it; returns the last one's ids."""
        ids: list[int] = []
        for index in range(start, len(messages)):
            if messages[index]["role"] == "user":
                body = {"uid": self._uid, "text": messages[index]["content"], "img_prompt": False}
                if index and messages[index - 1]["role"] == "assistant":
                    body["last_reply"] = messages[index - 1]["content"]
                ids = _ids(self._server.post("/encode", body), self._server)
        return ids


class HeldByServer:
    """StreamDecoder's interface over a server that itself holds back half characters."""

    def __init__(self, tokenizer: MultiUserTokenizer) -> None:
        self._tokenizer = tokenizer
        self._held = False

    def push(self, token_id: int) -> str:
        text = self._tokenizer.decode(token_id)
        self._held = not text
        return text

    def flush(self, cut: bool = False) -> str:
        """Nothing: half a character stays with the server."""
        if self._held:
            self._tokenizer.forget()
        return ""


class _Server:
    """Requests and JSON answers, with their errors in words."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            # a proxy named in the environment is not asked: tokenizer servers run nearby
            self._client = httpx2.Client(base_url=self.url, timeout=_SECONDS, trust_env=False)
        except Exception as error:  # a URL can be wrong in many ways
            raise AxzooError(f"{url} is no URL of a tokenizer server, like http://127.0.0.1:12345: {error}") from None

    def get(self, path: str) -> dict[str, Any]:
        return self._answer("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._answer("POST", path, body)

    def _answer(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        status, data = self.request(method, path, body)
        if status != 200:
            raise AxzooError(f"{self.url}{path} answered with status {status}: {data[:200].decode(errors='replace')}")
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise AxzooError(f"{self.url}{path} answered with no JSON object: it is no tokenizer server")
        return answer

    def request(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, bytes]:
        """The answer's status and content."""
        data = bytearray()
        try:
            with self._client.stream(method, path, json=body) as response:
                for piece in response.iter_bytes():
                    data += piece
                    if len(data) > _MAX_BYTES:
                        raise AxzooError(f"{self.url}{path} answered with more than {_MAX_BYTES} bytes")
                return response.status_code, bytes(data)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise AxzooError(
                f"no tokenizer server answers at {self.url} ({reason}): start one, `axzoo tokenizer --port PORT "
                "--model DIR`, or name another with --filename_tokenizer_model"
            ) from None
        except UnicodeEncodeError:
            raise AxzooError("the text cannot be tokenized, it is not UTF-8") from None


def _get_uid(server: _Server) -> str | None:
    """A new uid; None from a server of the simple protocol, which has no such path."""
    status, data = server.request("GET", "/get_uid", None)
    try:
        uid = json.loads(data).get("uid") if status == 200 else None
    except (ValueError, RecursionError, AttributeError):
        return None
    return uid if isinstance(uid, str) else None


def _special_id(answer: dict[str, Any], name: str, server: _Server) -> int | None:
    """-1 and null stand for a token that the model does not have."""
    value = answer.get(name, "")
    if value is None or value == -1:
        return None
    if not is_token_id(value):
        raise AxzooError(f"{server.url}/{name} answered {value!r}: it is no tokenizer server")
    return int(value)


def _ids(answer: dict[str, Any], server: _Server) -> list[int]:
    ids = answer.get("token_ids")
    if not isinstance(ids, list) or not all(map(is_token_id, ids)):
        raise AxzooError(f"{server.url}/encode answered with no token ids{_said(answer)}")
    return ids


def _text(answer: dict[str, Any], server: _Server) -> str:
    text = answer.get("text")
    if not isinstance(text, str):
        raise AxzooError(f"{server.url}/decode answered with no text{_said(answer)}")
    return text


def _said(answer: dict[str, Any]) -> str:
    return f": {answer['error']}" if "error" in answer else ""
