"""The tokenizer server without HTTP. Requests with a uid use the multi-user protocol, others the simple one."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool

from axzoo.core.errors import AxzooError
from axzoo.runtime.prompting import picture_placeholder
from axzoo.runtime.setup import ServedTokenizer
from axzoo.serving.fields import shown
from axzoo.serving.tokenizer_requests import DecodeRequest, EncodeRequest, ResetRequest
from axzoo.tokenizer.conversation import Conversation, chat_encoder, end_id, mark_sent, new_conversation
from axzoo.tokenizer.local import LocalTokenizer
from axzoo.tokenizer.stream import StreamDecoder
from axzoo.tokenizer.tokenizer_folder import ChatEncoder


@dataclass
class UserSession:
    """The conversation of one user, and the text stream of the current answer. Access requires holding `lock`."""

    conversation: Conversation
    stream: StreamDecoder
    last_used: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    counted_bytes: int = 0
    """What UserSessions counts for this session."""

    @property
    def bytes(self) -> int:
        """The memory of the conversation, approximately."""
        characters = sum(len(message["content"]) for message in self.conversation.messages)
        return 4 * (characters + len(self.conversation.sent))


class UserSessions:
    """User sessions by uid.

    A session expires after `max_idle` seconds without use. Beyond `limit` sessions, the least recently used is evicted,
    and beyond `max_bytes` of memory, the largest.
    """

    def __init__(
        self, limit: int, max_idle: float, clock: Callable[[], float] = time.monotonic, max_bytes: int = 1 << 26
    ) -> None:
        self._limit = limit
        self._max_bytes = max_bytes
        self._bytes = 0
        self._max_idle = max_idle
        self._clock = clock
        self._sessions: OrderedDict[str, UserSession] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, conversation: Conversation, stream: StreamDecoder) -> str:
        """Start a session and return its uid."""
        self._expire()
        if len(self._sessions) >= self._limit:
            self._evict(next(iter(self._sessions)))
        uid = str(uuid.uuid4())
        self._sessions[uid] = UserSession(conversation, stream, self._clock())
        return uid

    def get(self, uid: str) -> UserSession | None:
        """Return the session with that uid and mark it as used. Return None if there is none, or it has expired."""
        self._expire()
        session = self._sessions.get(uid)
        if session is not None:
            session.last_used = self._clock()
            self._sessions.move_to_end(uid)
        return session

    def count_memory(self, uid: str) -> None:
        """Count the memory of a session after a change, and evict others if all together have too much."""
        session = self._sessions.get(uid)
        if session is None:  # evicted while its request was handled
            return
        self._bytes += session.bytes - session.counted_bytes
        session.counted_bytes = session.bytes
        while self._bytes > self._max_bytes and len(self._sessions) > 1:
            others = (other for other in self._sessions if other != uid)
            self._evict(max(others, key=lambda other: self._sessions[other].counted_bytes))

    def _expire(self) -> None:
        deadline = self._clock() - self._max_idle
        while self._sessions and next(iter(self._sessions.values())).last_used < deadline:
            self._evict(next(iter(self._sessions)))

    def _evict(self, uid: str) -> None:
        self._bytes -= self._sessions.pop(uid).counted_bytes


MAX_SESSIONS = 256
MAX_IDLE_SECONDS = 3600.0
_MAX_PARALLEL_CHARACTERS = 1 << 14
"""Longer texts are encoded one at a time, because encoding takes several hundred bytes of memory per character."""


@dataclass(frozen=True)
class TokenizerService:
    """Handles requests. Every response is a JSON object; an AxzooError describes what is wrong with the request.

    `initial` is the conversation that every user starts with. `placeholder` is the text that stands for a picture; it
    is empty for a model that does not see.
    """

    tokenizer: LocalTokenizer
    encode_chat: ChatEncoder
    initial: Conversation
    bos_id: int
    eos_id: int
    vocab_size: int
    sessions: UserSessions
    placeholder: str = ""
    large: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "large"))

    def get_uid(self) -> dict[str, Any]:
        return {"uid": self.sessions.add(self.initial, self._stream())}

    def get_bos_id(self, uid: str | None) -> dict[str, Any]:
        self._check_uid(uid)
        return {"bos_id": self.bos_id}

    def get_eos_id(self, uid: str | None) -> dict[str, Any]:
        self._check_uid(uid)
        return {"eos_id": self.eos_id}

    async def encode(self, body: EncodeRequest) -> dict[str, Any]:
        if body.img_prompt and not self.placeholder:
            raise AxzooError("img_prompt: this model has no vision tower; send the question without an image")
        if body.uid is None:
            _, prompt, _ = await self._ask(self.initial, body)
            return {"token_ids": prompt}
        session = self._session(body.uid)
        async with session.lock:
            session.conversation, prompt, diff = await self._ask(session.conversation, body)
            session.stream = self._stream()
            self.sessions.count_memory(body.uid)
        return {"token_ids": prompt, "diff": diff}

    async def _ask(self, conversation: Conversation, body: EncodeRequest) -> tuple[Conversation, list[int], list[int]]:
        reply = None if body.uid is None else body.last_reply
        text = self.placeholder + body.text if body.img_prompt else body.text
        characters = len(text) + len(reply or "") + sum(len(turn["content"]) for turn in conversation.messages)
        if characters <= _MAX_PARALLEL_CHARACTERS:
            return await run_in_threadpool(conversation.ask, text, reply, self.encode_chat)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.large, conversation.ask, text, reply, self.encode_chat)

    async def decode(self, body: DecodeRequest) -> dict[str, Any]:
        """Return the text of the ids. With a uid, an incomplete character is held back until its rest arrives."""
        if any(index >= self.vocab_size for index in body.token_ids):
            raise AxzooError(f"token_ids: ids must be below {self.vocab_size}, not {shown(max(body.token_ids))}")
        if body.uid is None:
            return {"text": await run_in_threadpool(self.tokenizer.decode, body.token_ids, False)}
        session = self._session(body.uid)
        async with session.lock:
            return {"text": await run_in_threadpool(lambda: "".join(map(session.stream.push, body.token_ids)))}

    async def reset(self, body: ResetRequest) -> dict[str, Any]:
        session = self._session(body.uid)
        initial = self.initial if body.system_prompt is None else new_conversation(body.system_prompt)
        async with session.lock:
            loop = asyncio.get_running_loop()
            session.conversation = await loop.run_in_executor(self.large, mark_sent, initial, self.encode_chat)
            session.stream = self._stream()
            self.sessions.count_memory(body.uid)
            return {"token_ids": list(session.conversation.sent)}

    def _stream(self) -> StreamDecoder:
        return self.tokenizer.stream(skip_special_tokens=False)

    def _check_uid(self, uid: str | None) -> None:
        if uid is not None:
            self._session(uid)

    def _session(self, uid: str) -> UserSession:
        session = self.sessions.get(uid)
        if session is None:
            raise AxzooError("Invalid uid")  # ax-llm's client recognizes this message and requests a new uid
        return session


def make_service(served: ServedTokenizer) -> TokenizerService:
    """Make a service without users."""
    tokenizer = served.tokenizer
    bos, eos = tokenizer.bos_token_id, end_id(tokenizer, served.chat)
    return TokenizerService(
        tokenizer=tokenizer,
        encode_chat=chat_encoder(tokenizer, served.chat),
        initial=new_conversation(served.system_prompt),
        bos_id=-1 if bos is None else bos,
        eos_id=-1 if eos is None else eos,
        vocab_size=tokenizer.vocab_size,
        sessions=UserSessions(MAX_SESSIONS, MAX_IDLE_SECONDS),
        placeholder=picture_placeholder(served.image_rows) if served.image_rows else "",
    )
