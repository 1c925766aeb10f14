"""The format of log lines, and their colours on a terminal."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterator
from typing import TextIO

import pytest

from axzoo.core.console import SUCCESS, log_to_console, log_to_stream, open_console, set_log_handler

logger = logging.getLogger("axzoo.test_log")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored_log() -> Iterator[None]:
    yield
    set_log_handler(None)


@pytest.mark.parametrize("log_to", [log_to_stream, lambda stream: log_to_console(open_console(stream))])
def test_a_line_in_a_file_is_plain_and_unwrapped(
    monkeypatch: pytest.MonkeyPatch, log_to: Callable[[TextIO], None]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # CI services set it; it must not put control codes into their logs
    stream = io.StringIO()
    log_to(stream)
    logger.log(SUCCESS, "build llm model done! 100 % [b]{x}" + "y" * 200)
    line = (
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \| SUCCESS  \| "
        r"axzoo\.test_log:test_a_line_\w+:\d+ - build llm model done! 100 % \[b\]\{x\}y{200}\n"
    )
    assert re.fullmatch(line, stream.getvalue())


def test_a_line_on_a_terminal_is_coloured_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured, plain = Terminal(), Terminal()
    log_to_stream(coloured)
    logger.log(SUCCESS, "done")
    log_to_console(open_console(plain, color=False))
    logger.log(SUCCESS, "done")
    assert "\x1b[1;32m" in coloured.getvalue()
    assert "\x1b[1;32m" not in plain.getvalue()


def test_control_sequences_in_a_message_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    log_to_stream(terminal)
    logger.warning("a name from a file: \x1b[2J\x1b[H")
    assert "a name from a file" in terminal.getvalue()
    assert not re.search(r"\x1b\[[\d;]*[^\d;m]", terminal.getvalue())


def test_only_the_last_stream_gets_the_log() -> None:
    first, second = io.StringIO(), io.StringIO()
    log_to_stream(first)
    log_to_stream(second)
    logger.info("once")
    assert (first.getvalue(), second.getvalue().count("once")) == ("", 1)
