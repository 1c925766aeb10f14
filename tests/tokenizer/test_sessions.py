"""The number of user sessions is bounded, and idle sessions expire."""

from __future__ import annotations

from axzoo.serving.tokenizer_service import UserSessions
from axzoo.tokenizer.conversation import Conversation
from axzoo.tokenizer.stream import StreamDecoder


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _add(sessions: UserSessions) -> str:
    return sessions.add(Conversation(), StreamDecoder(lambda ids: ""))


def test_the_least_recently_used_session_is_evicted() -> None:
    sessions = UserSessions(limit=3, max_idle=100, clock=Clock())
    first, second, third = (_add(sessions) for _ in range(3))
    assert sessions.get(first) is not None
    fourth = _add(sessions)
    assert sessions.get(second) is None
    assert all(sessions.get(uid) for uid in (first, third, fourth))
    for _ in range(1000):
        _add(sessions)
    assert len(sessions) == 3


def test_idle_sessions_expire() -> None:
    clock = Clock()
    sessions = UserSessions(limit=10, max_idle=100, clock=clock)
    idle, used = _add(sessions), _add(sessions)
    clock.now = 60
    assert sessions.get(used) is not None
    clock.now = 120
    assert sessions.get(idle) is None
    assert sessions.get(used) is not None
    assert len(sessions) == 1


def test_uids_are_unique() -> None:
    sessions = UserSessions(limit=5, max_idle=100)
    assert len({_add(sessions) for _ in range(100)}) == 100
    assert sessions.get("") is None


def test_the_memory_of_all_sessions_is_limited() -> None:
    sessions = UserSessions(limit=100, max_idle=100, clock=Clock(), max_bytes=10_000)
    uids = []
    for _ in range(5):
        uids.append(_add(sessions))
        session = sessions.get(uids[-1])
        assert session is not None
        session.conversation = Conversation(({"role": "user", "content": "x" * 1000},))
        sessions.count_memory(uids[-1])  # 4,000 bytes
    assert [sessions.get(uid) is not None for uid in uids] == [False, False, False, True, True]
    last = sessions.get(uids[4])
    assert last is not None
    last.conversation = Conversation(({"role": "user", "content": "x" * 10_000},))
    sessions.count_memory(uids[4])
    assert [sessions.get(uid) is not None for uid in uids] == [False, False, False, False, True]
    last.conversation = Conversation()
    sessions.count_memory(uids[4])
    sessions.count_memory("nobody")
    more = _add(sessions)
    sessions.count_memory(more)
    assert sessions.get(uids[4]) is not None
