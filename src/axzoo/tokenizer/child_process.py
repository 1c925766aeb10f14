"""Child processes for untrusted input: limits on memory and time, and one line of JSON for each request and reply.

Chat templates are programs, and tokenizers are native code that runs on data from a checkpoint. Either can loop, ask
for gigabytes or end its process. In a child process, that is an error message, and nothing else is affected.
"""

from __future__ import annotations

import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from axzoo.core.errors import AxzooError

_REPLY_BYTES = 1 << 24
_REPLY_BYTES_PER_BYTE = 128
"""A reply may have the first number of bytes, and the second for each byte of its request, because the memory of the
parent has no other limit."""


@dataclass(frozen=True)
class Limits:
    """What one request may use: bytes of address space, seconds of CPU time."""

    memory: int
    cpu_seconds: int

    @property
    def wall_seconds(self) -> int:
        """Well above the CPU time, because the machine may be busy."""
        return 20 + 4 * self.cpu_seconds


class ChildError(Exception):
    """The child did not answer a request. The message is the reason, as a clause: `it does not finish within 2 s`."""


class ChildProcess:
    """A process that runs `python -m MODULE` and answers requests. Thread-safe.

    It starts with the first request and ends with this object. `setup` is sent before the first request. If a request
    exceeds its limits, the next one starts a new process.
    """

    def __init__(self, module: str, setup: object, limits: Limits) -> None:
        """`limits` are those of the setup."""
        self._module = module
        self._setup = setup
        self._limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stop: weakref.finalize[[subprocess.Popen[bytes]], ChildProcess] | None = None
        self._is_ready = False

    def set_up(self) -> Any:
        """Start a process and return its reply to the setup. Raises like `ask`."""
        with self._lock:
            return self._start()

    def ask(self, request: object, limits: Limits) -> Any:
        """Return the reply to a request.

        Raises ChildError when there is none, or it is an exception that is not meant for users. Raises AxzooError with
        the message of an AxzooError in the child.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None or not self._is_ready:
                self._start()
            return self._exchange(request, limits)

    def close(self) -> None:
        """End the process. The next request starts a new one."""
        if self._stop is not None:
            self._stop()
        self._process = self._stop = None

    def _start(self) -> Any:
        self.close()
        self._is_ready = False
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            process_group=0,  # so that Ctrl-C on the terminal does not reach it
        )
        assert process.stdin is not None and process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        self._process, self._stop = process, weakref.finalize(self, _end, process)
        reply = self._exchange(self._setup, self._limits)
        self._is_ready = True
        return reply

    def _exchange(self, request: object, limits: Limits) -> Any:
        assert self._process is not None
        body = json.dumps(request).encode()
        room = _REPLY_BYTES + _REPLY_BYTES_PER_BYTE * len(body)
        line = json.dumps([limits.memory, limits.cpu_seconds, room]).encode() + b"\n" + body + b"\n"
        try:
            reply = json.loads(_converse(self._process, line, limits.wall_seconds, room))
        except (EOFError, TimeoutError, ValueError) as error:
            raise ChildError(self._why_it_ended(error, limits)) from None
        except BaseException:  # Ctrl-C: the reply would be taken for that of the next request
            self.close()
            raise
        if reply.get("ends"):
            self.close()
        if "refused" in reply:
            raise AxzooError(reply["refused"])
        if "error" in reply:
            raise ChildError(reply["error"])
        return reply["reply"]

    def _why_it_ended(self, error: Exception, limits: Limits) -> str:
        """End a process that did not answer. Return the reason."""
        process = self._process
        assert process is not None
        self.close()
        code = process.returncode
        if isinstance(error, TimeoutError) or code == -signal.SIGXCPU:
            return f"it does not finish within {limits.cpu_seconds} s"
        if code == -signal.SIGABRT:  # what C++ and Rust do when memory cannot be allocated
            return f"it needs more than {limits.memory >> 20} MiB of memory"
        return f"it crashes (exit status {code})"


def _converse(process: subprocess.Popen[bytes], line: bytes, seconds: int, room: int) -> bytes:
    """Write a request and return the line that answers it.

    Raises EOFError when the process ends first, TimeoutError after `seconds`, ValueError beyond `room` bytes.
    """
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin.fileno(), process.stdout.fileno()
    deadline = time.monotonic() + seconds
    poll = select.poll()  # select() does not accept descriptors above 1023
    poll.register(stdout, select.POLLIN)
    unsent, received = memoryview(line), bytearray()
    while True:
        if unsent:
            try:
                unsent = unsent[os.write(stdin, unsent) :]
            except BlockingIOError:
                pass  # the pipe is full
            except BrokenPipeError:
                raise EOFError from None
            poll.register(stdin, select.POLLOUT if unsent else 0)
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if stdout not in dict(poll.poll(left * 1000)):
            continue
        chunk = os.read(stdout, 1 << 16)
        if not chunk:
            raise EOFError
        received += chunk
        if chunk.endswith(b"\n"):
            return bytes(received)
        if len(received) > room + 1024:
            raise ValueError


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process. One that has closed its stdout is ending already, and its exit status says why."""
    assert process.stdin is not None and process.stdout is not None
    if _is_closed(process.stdout.fileno()):
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def _is_closed(stdout: int) -> bool:
    poll = select.poll()
    poll.register(stdout, select.POLLIN)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def answer_requests(handle: Callable[[Any], Any]) -> None:
    """In the child: reply to each request on stdin with what `handle` returns, until end of input.

    An AxzooError is passed on as such, another exception as its message. After a panic (an exception of a native
    library that is not an Exception), the parent ends the process, whose state is unknown.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash must not leave a file behind
    with os.fdopen(os.dup(1), "wb") as replies:
        os.dup2(2, 1)  # libraries may print
        for line in sys.stdin.buffer:
            memory, cpu_seconds, room = json.loads(line)
            _set_limits(memory, cpu_seconds)
            reply = _answer(handle, room)
            replies.write(reply + b"\n")
            replies.flush()


def _answer(handle: Callable[[Any], Any], room: int) -> bytes:
    try:
        reply = json.dumps({"reply": handle(json.loads(sys.stdin.buffer.readline()))}).encode()
        if len(reply) <= room:
            return reply
        return json.dumps({"error": f"it answers with more than {room} bytes"}).encode()
    except AxzooError as error:
        return json.dumps({"refused": _one_line(str(error), 2000)}).encode()
    except BaseException as error:
        text = _one_line(str(error) or type(error).__name__, 500)
        return json.dumps({"error": text, "ends": not isinstance(error, Exception)}).encode()


def _one_line(text: str, length: int) -> str:
    """The text of an error, which an untrusted file may have chosen, in one line of valid Unicode."""
    return " ".join(text[:length].encode("utf-8", "backslashreplace").decode().split())


def _set_limits(memory: int, cpu_seconds: int) -> None:
    """Limit the next request. The kernel counts CPU time from the start of the process."""
    seconds = math.ceil(time.process_time()) + cpu_seconds
    for kind, soft in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
