"""The users of the tokenizer server: bounded in number and in age."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from axzoo.tokenizer.conversation import Conversation
from axzoo.tokenizer.stream import StreamDecoder


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
