"""What the tokenizer server answers, apart from HTTP: the simple protocol, and with a uid the multi-user one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool

from axzoo.errors import AxzooError
from axzoo.tokenizer.conversation import ChatIds, Conversation, chat_ids, introduced, new_conversation
from axzoo.tokenizer.local import LocalTokenizer
from axzoo.tokenizer.requests import Decode, Encode, Reset
from axzoo.tokenizer.served import Served
from axzoo.tokenizer.sessions import Session, Sessions
from axzoo.tokenizer.stream import StreamDecoder
from axzoo.tokenizer.turn_end import turn_end_id

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
