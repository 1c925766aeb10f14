"""However many users come, so many are kept, and none for ever."""

from __future__ import annotations

from axzoo.serving.tokenizer_service import Sessions
from axzoo.tokenizer.conversation import Conversation
from axzoo.tokenizer.stream import StreamDecoder


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _add(sessions: Sessions) -> str:
    return sessions.add(Conversation(), StreamDecoder(lambda ids: ""))


def test_of_too_many_the_one_unused_for_longest_goes() -> None:
    sessions = Sessions(limit=3, max_idle=100, clock=Clock())
    first, second, third = (_add(sessions) for _ in range(3))
    assert sessions.get(first) is not None
    fourth = _add(sessions)
    assert sessions.get(second) is None
    assert all(sessions.get(uid) for uid in (first, third, fourth))
    for _ in range(1000):
        _add(sessions)
    assert len(sessions) == 3


def test_an_idle_one_ends_and_a_used_one_stays() -> None:
    clock = Clock()
    sessions = Sessions(limit=10, max_idle=100, clock=clock)
    idle, used = _add(sessions), _add(sessions)
    clock.now = 60
    assert sessions.get(used) is not None
    clock.now = 120
    assert sessions.get(idle) is None
    assert sessions.get(used) is not None
    assert len(sessions) == 1


def test_uids_are_never_alike() -> None:
    sessions = Sessions(limit=5, max_idle=100)
    assert len({_add(sessions) for _ in range(100)}) == 100
    assert sessions.get("") is None
