"""Runs the compiler once, in a process group of its own, and leaves nothing running: not after a timeout, an interrupt
or a signal, and not if this process is killed."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from axzoo.backends.pulsar2.tool import Launch, kill_container

logger = logging.getLogger(__name__)

DONE = "build llm model done!"
"""The compiler logs this after the last file."""

_GRACE_SECONDS = 3.0
"""For a compiler that does not end, although its files are complete and it said so."""

_POLL_SECONDS = (0.02, 0.5)
_MEMORY_SECONDS = 0.5
_KILL_SECONDS = 5.0
_KEPT_LOG = 4 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class RunLimits:
    """A run that takes longer, or more memory than this, is ended. Containers limit their memory themselves."""

    seconds: float
    memory_mb: int


@dataclass(frozen=True)
class RunResult:
    """How a run ended: its exit status, negative for a signal, its log, and whether DONE was in it. `ended_because`
    says why axzoo ended it."""

    status: int
    log: str
    said_done: bool = False
    ended_because: str | None = None


def run(start: Launch, folder: Path, limits: RunLimits, is_complete: Callable[[], bool]) -> RunResult:
    """Runs the compiler in `folder`, and copies its log to stderr. When it has logged DONE and `is_complete()` holds,
    it has a few seconds to end. Raises OSError when it cannot be started."""
    log = folder / "log"
    with _terminated_by_sigterm(), log.open("wb") as output:
        process = subprocess.Popen(
            start.command,
            cwd=folder,
            env=dict(start.environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        guard, has_ended = None, False
        try:
            guard = _guard(process.pid, start)
            reader = _Log(log)
            because = _wait(process, reader, limits, is_complete, watches_memory=not start.kill)
            reader.read()
            has_ended = because is None and reader.said_done and process.returncode == 0
        finally:
            _stop(process, start, has_ended)
            if guard is not None:
                _dismiss(guard)
    reader.read()
    return RunResult(process.returncode, reader.text, reader.said_done, because)


class _Log:
    """A log that is being written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._kept: list[bytes] = []
        self._size = 0
        self.said_done = False

    @property
    def text(self) -> str:
        return b"".join(self._kept).decode(errors="replace")

    def read(self) -> None:
        """Copies what is new to stderr. Of very long logs, the start and the end are kept."""
        while new := self._file.read(1 << 20):
            sys.stderr.write(new.decode(errors="replace"))
            before = self._kept[-1] if self._kept else b""
            self.said_done = self.said_done or DONE.encode() in before[-len(DONE) :] + new
            self._kept.append(new)
            self._size += len(new)
            while self._size > _KEPT_LOG and len(self._kept) > 2:
                self._size -= len(self._kept.pop(1))
        sys.stderr.flush()


def _wait(
    process: subprocess.Popen[bytes],
    log: _Log,
    limits: RunLimits,
    is_complete: Callable[[], bool],
    watches_memory: bool,
) -> str | None:
    """Waits for the end, and returns None; or returns why the process must be ended."""
    began, pause = time.monotonic(), _POLL_SECONDS[0]
    measured, complete_since = began, None
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(pause)
            return None
        pause = min(pause * 1.5, _POLL_SECONDS[1])
        log.read()
        now = time.monotonic()
        if now - began > limits.seconds:
            return f"it had not finished after {limits.seconds / 60:.3g} minutes"
        if watches_memory and now - measured > _MEMORY_SECONDS:
            measured = now
            used = _group_memory(process.pid) >> 20
            if used > limits.memory_mb:
                return f"it used {used} MB of memory, and the limit is {limits.memory_mb} MB"
        if not log.said_done or not is_complete():
            complete_since = None
        elif complete_since is None:
            complete_since = now
        elif now - complete_since > _GRACE_SECONDS:
            logger.info("the compiler has written all files and does not end: ending it")
            return ""


def _stop(process: subprocess.Popen[bytes], start: Launch, has_ended: bool) -> None:
    """Ends the process group and the container, which `has_ended` says if the run finished by itself. Otherwise a
    container may survive its client, whatever the client's exit status is."""
    if process.poll() is None:
        kill_container(start.kill)
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + _KILL_SECONDS
        while process.poll() is None or (_group_exists(process.pid) and number == signal.SIGTERM):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        if process.poll() is not None and not _group_exists(process.pid):
            break
    process.wait()
    if not has_ended:
        kill_container(start.kill)


def _guard(group: int, start: Launch) -> subprocess.Popen[bytes]:
    """A process that ends the compiler when this one is killed: its input then ends before it gets a line."""
    kill = f"{shlex.join(start.kill)} >/dev/null 2>&1; " if start.kill else ""
    script = f"read -r word && exit; {kill}kill -9 -{group} 2>/dev/null; {kill or ':'}"
    return subprocess.Popen(
        ["/bin/sh", "-c", script],
        env=dict(start.environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _dismiss(guard: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):
        guard.communicate(b"done\n")


@contextlib.contextmanager
def _terminated_by_sigterm() -> Iterator[None]:
    """SIGTERM, as clusters send it to cancelled jobs, ends the block with SystemExit, so that it can clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _processes(group: int) -> Iterator[tuple[str, int]]:
    """The state and resident bytes of the processes of a group."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[2]) == group:
                yield fields[0], int(fields[21]) * _PAGE


def _group_memory(group: int) -> int:
    return sum(size for _, size in _processes(group))


def _group_exists(group: int) -> bool:
    return any(state != "Z" for state, _ in _processes(group))
