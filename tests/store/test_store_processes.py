"""Many processes use one store: no entry is lost or mixed up with another, and each has one file."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Mapping
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any, BinaryIO

from axzoo.store import Store, content_key, link
from axzoo.store.upkeep import collect, contents, find_damage

CONTEXT = multiprocessing.get_context("fork")
HOUR_S = 3600


def _key(number: int) -> str:
    return content_key({"n": number})


def _bytes(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest() * 5000


def _write(number: int) -> Callable[[BinaryIO], Mapping[str, Any]]:
    def write(file: BinaryIO) -> Mapping[str, Any]:
        data = _bytes(number)
        for start in range(0, len(data), 20_000):
            file.write(data[start : start + 20_000])
        return {"n": number}

    return write


def _use(store: Store, number: int, target: Path) -> None:
    """The steps of a job: find or build, then link."""
    entry = store.find(_key(number)) or store.add(_key(number), _write(number))
    assert entry.about == {"n": number}
    link(entry, target)
    assert target.read_bytes() == _bytes(number)


def _run(*jobs: tuple[Callable[..., None], tuple[Any, ...]]) -> list[int | None]:
    """Runs each job in its own process; returns the exit codes."""
    processes = [CONTEXT.Process(target=job, args=arguments) for job, arguments in jobs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def _use_together(root: Path, target: Path, barrier: Barrier) -> None:
    for number in range(15):
        barrier.wait(timeout=60)
        _use(Store(root), number, target / str(number))


def test_concurrent_builds_of_one_entry_leave_one_file(tmp_path: Path) -> None:
    """Two processes build into one folder and two into another, each entry at the same time."""
    root, barrier = tmp_path / "store", CONTEXT.Barrier(4)
    assert _run(*[(_use_together, (root, tmp_path / name, barrier)) for name in "aabb"]) == [0] * 4
    for number in range(15):
        data, _ = Store(root).paths(_key(number))
        assert (tmp_path / "a" / str(number)).samefile(data)
        assert (tmp_path / "b" / str(number)).samefile(data)
        assert data.stat().st_nlink == 3
    assert len(_files(root)) == 2 * 15 + 1  # and the lock
    assert not [name for name in _files(tmp_path) if name.endswith(".part")]


def _use_at_random(root: Path, target: Path, seed: int) -> None:
    """If entries of any age are collected, one may be gone before it is linked. That is reported, and no other entry's
    bytes are ever linked."""
    chance = random.Random(seed)
    for _ in range(40):
        number = chance.randrange(5)
        while True:
            try:
                _use(Store(root), number, target / str(number))
                break
            except FileNotFoundError:
                continue


def _until(done: Event, work: Callable[[], object]) -> None:
    while not done.is_set():
        work()


def _tear_receipts(root: Path) -> None:
    """Damages a receipt."""
    for path in root.glob("*/*.json"):
        with contextlib.suppress(FileNotFoundError):
            path.write_bytes(path.read_bytes()[:20])
    time.sleep(0.005)


def test_all_operations_at_once(tmp_path: Path) -> None:
    root, done = tmp_path / "store", CONTEXT.Event()
    root.mkdir()
    store = Store(root)
    others = [
        CONTEXT.Process(target=_until, args=(done, lambda: collect(store, [], 0, dry_run=False))),
        CONTEXT.Process(target=_until, args=(done, lambda: list(find_damage(store, repair=True)))),
        CONTEXT.Process(target=_until, args=(done, lambda: list(find_damage(store, repair=False)))),
        CONTEXT.Process(target=_until, args=(done, lambda: _tear_receipts(root))),
    ]
    for other in others:
        other.start()
    codes = _run(*[(_use_at_random, (root, tmp_path / "ab"[seed % 2], seed)) for seed in range(4)])
    done.set()
    for other in others:
        other.join()
    assert codes == [0] * 4
    assert [other.exitcode for other in others] == [0] * 4
    for folder in "ab":
        for path in (tmp_path / folder).iterdir():
            assert path.read_bytes() == _bytes(int(path.name))
    list(find_damage(store, repair=True))
    assert all(store.intact(stored.key) for stored in contents(store))
    assert not [name for name in _files(tmp_path) if name.endswith(".part")]


def _use_old_ones(root: Path, target: Path, numbers: list[int]) -> None:
    store = Store(root)
    for _ in range(40):
        for number in numbers:
            _use(store, number, target / str(number))
            for path in store.paths(_key(number)):
                if path.exists():
                    os.utime(path, (0, 0))


def test_an_entry_found_by_a_build_is_not_collected_before_it_is_linked(tmp_path: Path) -> None:
    """Each entry is old and unused when it is found; the collector removes entries older than an hour."""
    root, done = tmp_path / "store", CONTEXT.Event()
    root.mkdir()
    store = Store(root)
    collector = CONTEXT.Process(target=_until, args=(done, lambda: collect(store, [], HOUR_S, dry_run=False)))
    collector.start()
    codes = _run(*[(_use_old_ones, (root, tmp_path / str(n), [n, n + 10])) for n in range(3)])
    done.set()
    collector.join()
    assert codes == [0] * 3
    assert collector.exitcode == 0
