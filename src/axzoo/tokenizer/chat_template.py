"""Chat templates, rendered as transformers renders them, in a process that cannot harm its caller.

A template is a program that came with a checkpoint. Jinja's sandbox keeps it from Python's objects, but not from
looping for ever or from doubling a string until memory ends; only a process of its own, with limits, does. Starting it
costs about 80 ms, so it is kept for the next conversation.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence

from axzoo.core.errors import AxzooError

Message = Mapping[str, str]
"""One turn: {"role": "system" | "user" | "assistant", "content": text}."""

MAX_TEMPLATE_CHARS = 1 << 20
MAX_RENDERED_CHARS = 1 << 22
MEMORY_BYTES = 1 << 29
CPU_SECONDS = 2
_WALL_SECONDS = 30  # generous: the machine may be busy


def render_chat(
    template: str, messages: Sequence[Message], special_tokens: Mapping[str, str], add_generation_prompt: bool
) -> str:
    """Renders one conversation; see ChatRenderer.render."""
    renderer = ChatRenderer(template, special_tokens)
    try:
        return renderer.render(messages, add_generation_prompt)
    finally:
        renderer.close()


class ChatRenderer:
    """A Jinja template and the process that renders it, which starts with the first conversation, ends with this object
    and is replaced when a conversation was too much for it. Threads may share it."""

    def __init__(self, template: str, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens` are the template's variables bos_token, eos_token, ..."""
        self._template = template
        self._special_tokens = dict(special_tokens)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stop: weakref.finalize[[subprocess.Popen[bytes]], ChatRenderer] | None = None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The text of a conversation.

        Raises AxzooError when the template is not valid, refuses the messages (`raise_exception`), reaches for
        something the sandbox forbids, or needs more than 2 s, 512 MiB or 4 Mi characters of output.
        """
        if len(self._template) > MAX_TEMPLATE_CHARS:
            raise AxzooError(f"the chat template has {len(self._template)} characters, more than {MAX_TEMPLATE_CHARS}")
        with self._lock:
            line = self._answer(_line([[dict(message) for message in messages], add_generation_prompt]))
        if not line.endswith(b"\n"):
            raise AxzooError(
                f"the chat template does not finish within {CPU_SECONDS} s and {MEMORY_BYTES >> 20} MiB: it is broken"
            )
        reply: dict[str, str] = json.loads(line)
        if "error" in reply:
            raise AxzooError(f"the chat template cannot render these messages: {reply['error']}")
        return reply["text"]

    def close(self) -> None:
        """Ends the process; the next conversation starts another."""
        if self._stop is not None:
            self._stop()
        self._process = self._stop = None

    def _answer(self, request: bytes) -> bytes:
        """The process's line, cut short if it died."""
        process = self._running() or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
            waiting = select.poll()  # select() takes no descriptors above 1023
            waiting.register(process.stdout, select.POLLIN)
            line = process.stdout.readline() if waiting.poll(_WALL_SECONDS * 1000) else b""
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
            process_group=0,  # a Ctrl-C on the terminal is not meant for it
        )
        assert process.stdin is not None
        self.close()
        self._process, self._stop = process, weakref.finalize(self, _end, process)
        process.stdin.write(_line([self._template, self._special_tokens]))
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"
