"""The stamp against its pattern, and its colours on a terminal."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterator
from typing import TextIO

import pytest

from axzoo.core.console import SUCCESS, open_console, show_by, stamp_lines, stamp_log

logger = logging.getLogger("axzoo.test_log")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored_log() -> Iterator[None]:
    yield
    show_by(None)


@pytest.mark.parametrize("stamp", [stamp_log, lambda stream: stamp_lines(open_console(stream))])
def test_a_line_off_a_terminal_is_plain_and_unwrapped(
    monkeypatch: pytest.MonkeyPatch, stamp: Callable[[TextIO], None]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # CI services set it; it must not put control codes into their logs
    stream = io.StringIO()
    stamp(stream)
    logger.log(SUCCESS, "build llm model done! 100 % [b]{x}" + "y" * 200)
    line = (
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \| SUCCESS  \| "
        r"axzoo\.test_log:test_a_line_\w+:\d+ - build llm model done! 100 % \[b\]\{x\}y{200}\n"
    )
    assert re.fullmatch(line, stream.getvalue())


def test_a_line_on_a_terminal_is_coloured_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured, plain = Terminal(), Terminal()
    stamp_log(coloured)
    logger.log(SUCCESS, "done")
    stamp_lines(open_console(plain, color=False))
    logger.log(SUCCESS, "done")
    assert "\x1b[1;32m" in coloured.getvalue()
    assert "\x1b[1;32m" not in plain.getvalue()


def test_a_message_moves_no_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    stamp_log(terminal)
    logger.warning("a name out of a file: \x1b[2J\x1b[H")
    assert "a name out of a file" in terminal.getvalue()
    assert not re.search(r"\x1b\[[\d;]*[^\d;m]", terminal.getvalue())


def test_only_the_last_asked_shows_lines() -> None:
    first, second = io.StringIO(), io.StringIO()
    stamp_log(first)
    stamp_log(second)
    logger.info("once")
    assert (first.getvalue(), second.getvalue().count("once")) == ("", 1)
