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


def _grow(sessions: UserSessions, uid: str, characters: int) -> None:
    session = sessions.get(uid)
    assert session is not None
    session.conversation = Conversation(({"role": "user", "content": "x" * characters},))
    sessions.count_memory(uid)


def test_the_memory_of_all_sessions_is_limited() -> None:
    """The largest sessions are evicted, so that no user can evict those with small conversations."""
    sessions = UserSessions(limit=100, max_idle=100, clock=Clock(), max_bytes=10_000)
    small, first, second, third = (_add(sessions) for _ in range(4))
    _grow(sessions, small, 10)
    _grow(sessions, first, 1200)  # 4,800 bytes
    _grow(sessions, second, 1000)
    assert len(sessions) == 4
    _grow(sessions, third, 1000)
    assert [sessions.get(uid) is not None for uid in (small, first, second, third)] == [True, False, True, True]
    _grow(sessions, third, 10_000)  # alone too large: the one that grows stays, and the next one replaces it
    assert [sessions.get(uid) is not None for uid in (small, second, third)] == [False, False, True]
    _grow(sessions, third, 10)
    sessions.count_memory("nobody")
    for _ in range(20):
        _grow(sessions, _add(sessions), 100)
    assert len(sessions) == 21
