"""What the tokenizer server answers, apart from HTTP: the simple protocol, and with a uid the multi-user one."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json
from axzoo.tokenizer.conversation import ChatIds, Conversation, chat_ids, introduced, new_conversation, turn_end_id
from axzoo.tokenizer.local import LocalTokenizer, load_tokenizer
from axzoo.tokenizer.stream import StreamDecoder

MAX_TOKEN_IDS = 1 << 16


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class Encode(_Body):
    """POST /encode. With `uid`: the next question of that user's conversation, after `last_reply`."""

    text: str
    uid: str | None = None
    last_reply: str | None = None
    img_prompt: bool = False


class Decode(_Body):
    """POST /decode. With `uid`: the next tokens of the answer to that user."""

    token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_TOKEN_IDS)]
    uid: str | None = None


class Reset(_Body):
    """POST /reset: that user's conversation begins anew."""

    uid: str
    system_prompt: str | None = None


@dataclass
class Session:
    """What one user has said and is being told. Whoever reads or changes it holds `lock`."""

    conversation: Conversation
    stream: StreamDecoder
    used: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Sessions:
    """Sessions by uid. One that nobody uses for `max_idle` seconds ends; of more than `limit`, the one that was not
    used for longest does."""

    def __init__(self, limit: int, max_idle: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._max_idle = max_idle
        self._clock = clock
        self._sessions: OrderedDict[str, Session] = OrderedDict()  # the one used last comes last

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, conversation: Conversation, stream: StreamDecoder) -> str:
        """Begins a session and returns its uid."""
        self._expire()
        if len(self._sessions) >= self._limit:
            self._sessions.popitem(last=False)
        uid = str(uuid.uuid4())
        self._sessions[uid] = Session(conversation, stream, self._clock())
        return uid

    def get(self, uid: str) -> Session | None:
        """The session of that uid, which thereby counts as used; None when there is none (any more)."""
        self._expire()
        session = self._sessions.get(uid)
        if session is not None:
            session.used = self._clock()
            self._sessions.move_to_end(uid)
        return session

    def _expire(self) -> None:
        oldest = self._clock() - self._max_idle
        while self._sessions and next(iter(self._sessions.values())).used < oldest:
            self._sessions.popitem(last=False)


@dataclass(frozen=True)
class Served:
    """A tokenizer, whether prompts go through its chat template, and the system's message ("" for none)."""

    tokenizer: LocalTokenizer
    chat: bool
    system_prompt: str


def open_served(folder: Path) -> Served:
    """Reads the folder. A bundle's config.json says whether to chat; elsewhere the chat template's presence does.

    Raises AxzooError when there is no tokenizer, or a file is broken.
    """
    if not folder.is_dir():
        raise AxzooError(f"{folder} is not a folder: name a bundle, or a folder with a tokenizer.json")
    if not (folder / "tokenizer").is_dir():
        tokenizer = load_tokenizer(folder)
        return Served(tokenizer, tokenizer.chat is not None, "")
    tokenizer = load_tokenizer(folder / "tokenizer")
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    if not isinstance(config, dict):
        raise AxzooError(f"{path} must hold a JSON object")
    chat, system_prompt = config.get("chat", tokenizer.chat is not None), config.get("system_prompt", "")
    if type(chat) is not bool or type(system_prompt) is not str:
        raise AxzooError(f"{path}: chat must be true or false, and system_prompt a text")
    return Served(tokenizer, chat, system_prompt)


MAX_SESSIONS = 256
MAX_IDLE_SECONDS = 3600.0
_FEW_IDS = 64


@dataclass(frozen=True)
class Service:
    """Every answer is a JSON object; AxzooError is the client's mistake, in words for it."""

    tokenizer: LocalTokenizer
    ids_of: ChatIds
    beginning: Conversation
    bos_id: int
    eos_id: int
    vocab_size: int
    sessions: Sessions

    def get_uid(self) -> dict[str, Any]:
        return {"uid": self.sessions.add(self.beginning, self._stream())}

    def get_bos_id(self, uid: str | None) -> dict[str, Any]:
        self._check(uid)
        return {"bos_id": self.bos_id}

    def get_eos_id(self, uid: str | None) -> dict[str, Any]:
        self._check(uid)
        return {"eos_id": self.eos_id}

    async def encode(self, body: Encode) -> dict[str, Any]:
        if body.img_prompt:
            raise AxzooError("img_prompt: this model has no vision tower, ask it without an image")
        if body.uid is None:
            _, prompt, _ = await run_in_threadpool(self.beginning.ask, body.text, None, self.ids_of)
            return {"token_ids": prompt}
        session = self._session(body.uid)
        async with session.lock:
            session.conversation, prompt, diff = await run_in_threadpool(
                session.conversation.ask, body.text, body.last_reply, self.ids_of
            )
            session.stream = self._stream()
        return {"token_ids": prompt, "diff": diff}

    async def decode(self, body: Decode) -> dict[str, Any]:
        """Without a uid the ids' whole text; with one, what of it can be shown: the rest of a character may follow."""
        if any(index >= self.vocab_size for index in body.token_ids):
            raise AxzooError(f"token_ids: the tokenizer has ids below {self.vocab_size}, not {max(body.token_ids)}")
        if body.uid is None:
            return {"text": await _decoded(lambda ids: self.tokenizer.decode(ids, False), body.token_ids)}
        session = self._session(body.uid)
        async with session.lock:
            return {"text": await _decoded(lambda ids: "".join(map(session.stream.push, ids)), body.token_ids)}

    async def reset(self, body: Reset) -> dict[str, Any]:
        session = self._session(body.uid)
        beginning = self.beginning if body.system_prompt is None else new_conversation(body.system_prompt)
        async with session.lock:
            session.conversation = await run_in_threadpool(introduced, beginning, self.ids_of)
            session.stream = self._stream()
            return {"token_ids": list(session.conversation.told)}

    def _stream(self) -> StreamDecoder:
        return self.tokenizer.stream(skip_special_tokens=False)

    def _check(self, uid: str | None) -> None:
        if uid is not None:
            self._session(uid)

    def _session(self, uid: str) -> Session:
        session = self.sessions.get(uid)
        if session is None:
            raise AxzooError("Invalid uid")  # the words that ax-llm's client looks for to ask for another
        return session


def make_service(served: Served) -> Service:
    """A service without users yet."""
    tokenizer = served.tokenizer
    bos, eos = tokenizer.bos_token_id, turn_end_id(tokenizer, served.chat)
    return Service(
        tokenizer=tokenizer,
        ids_of=chat_ids(tokenizer, served.chat),
        beginning=new_conversation(served.system_prompt),
        bos_id=-1 if bos is None else bos,
        eos_id=-1 if eos is None else eos,
        vocab_size=tokenizer.vocab_size,
        sessions=Sessions(MAX_SESSIONS, MAX_IDLE_SECONDS),
    )


async def _decoded(decode: Callable[[list[int]], str], token_ids: list[int]) -> str:
    """A few ids, as a host decodes them while it answers, are sooner done than handed to a thread."""
    return decode(token_ids) if len(token_ids) <= _FEW_IDS else await run_in_threadpool(decode, token_ids)
