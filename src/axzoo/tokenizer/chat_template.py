"""Renders chat templates as transformers does, in a separate process with resource limits.

A template is a program that comes with a checkpoint. Jinja's sandbox denies it access to Python's internals, but does
not stop it from looping forever or exhausting memory, so it runs in a separate process with limits. Starting that
process takes about 80 ms, so it is reused for later conversations.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from axzoo.core.errors import AxzooError

Message = Mapping[str, str]
"""One turn: {"role": "system" | "user" | "assistant", "content": text}."""

NO_VARIABLES: Mapping[str, object] = MappingProxyType({})

MAX_TEMPLATE_CHARS = 1 << 20
MAX_RENDERED_CHARS = 1 << 22
MEMORY_BYTES = 1 << 29
CPU_SECONDS = 2
_WALL_SECONDS = 30  # well above CPU_SECONDS, because the machine may be busy


def render_chat(
    template: str, messages: Sequence[Message], special_tokens: Mapping[str, str], add_generation_prompt: bool
) -> str:
    """Render a single conversation; see ChatRenderer.render."""
    renderer = ChatRenderer(template, special_tokens)
    try:
        return renderer.render(messages, add_generation_prompt)
    finally:
        renderer.close()


class ChatRenderer:
    """A Jinja template and the process that renders it. Thread-safe.

    The process starts with the first conversation and ends with this object. If a conversation exceeds the limits, the
    process is replaced.
    """

    def __init__(self, template: str, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens` are the template variables bos_token, eos_token, ..."""
        self._template = template
        self._special_tokens = dict(special_tokens)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stop: weakref.finalize[[subprocess.Popen[bytes]], ChatRenderer] | None = None

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool, variables: Mapping[str, object] = NO_VARIABLES
    ) -> str:
        """Return the text of a conversation. `variables` are further template variables, such as enable_thinking.

        Raises AxzooError when the template is not valid, rejects the messages (`raise_exception`), violates the
        sandbox, or needs more than 2 s, 512 MiB or 4 Mi characters of output.
        """
        if len(self._template) > MAX_TEMPLATE_CHARS:
            raise AxzooError(
                f"the chat template has {len(self._template)} characters; the limit is {MAX_TEMPLATE_CHARS}"
            )
        with self._lock:
            turns = [dict(message) for message in messages]
            line = self._request(_json_line([turns, add_generation_prompt, dict(variables)]))
        if not line.endswith(b"\n"):
            raise AxzooError(
                f"the chat template does not finish within {CPU_SECONDS} s and {MEMORY_BYTES >> 20} MiB: fix it"
            )
        reply: dict[str, str] = json.loads(line)
        if "error" in reply:
            raise AxzooError(f"the chat template cannot render these messages: {reply['error']}")
        return reply["text"]

    def close(self) -> None:
        """End the process. The next conversation starts a new one."""
        if self._stop is not None:
            self._stop()
        self._process = self._stop = None

    def _request(self, request: bytes) -> bytes:
        """Return the line that the process writes; it is incomplete if the process died or timed out."""
        process = self._running() or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
            poll = select.poll()  # select() does not accept descriptors above 1023
            poll.register(process.stdout, select.POLLIN)
            line = process.stdout.readline() if poll.poll(_WALL_SECONDS * 1000) else b""
        except BrokenPipeError:
            line = b""
        if not line.endswith(b"\n"):
            self.close()
        return line

    def _running(self) -> subprocess.Popen[bytes] | None:
        return self._process if self._process is not None and self._process.poll() is None else None

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "axzoo.tokenizer.template_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # so that Ctrl-C on the terminal does not reach it
        )
        assert process.stdin is not None
        self.close()
        self._process, self._stop = process, weakref.finalize(self, _end, process)
        process.stdin.write(_json_line([self._template, self._special_tokens]))
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _json_line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"
