"""What a command shows while it runs: log lines, and progress bars on a terminal."""

from __future__ import annotations

import logging
import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


SUCCESS = 25
"""Above INFO, below WARNING."""

_TIME = "%Y-%m-%d %H:%M:%S"
_STYLES = {logging.DEBUG: "bold blue", SUCCESS: "bold green", logging.WARNING: "bold yellow", logging.ERROR: "bold red"}

logging.addLevelName(SUCCESS, "SUCCESS")


def stamp_log(stream: TextIO) -> None:
    """Makes every line of axzoo's log go to `stream`: `time | SUCCESS  | name:function:line - message`.

    A job's log needs no rich, which takes a tenth of a small job's time to import.
    """
    if stream.isatty():
        from axzoo.core.console import open_console

        stamp_lines(open_console(stream))
    else:
        handler = logging.StreamHandler(stream)
        place = "{name}:{funcName}:{lineno}"
        handler.setFormatter(
            logging.Formatter(f"{{asctime}}.{{msecs:03.0f}} | {{levelname:<8}} | {place} - {{message}}", _TIME, "{")
        )
        show_by(handler)


def stamp_lines(console: Console) -> None:
    """As `stamp_log`, above the bars that `console` shows, in colours where it has them."""
    show_by(_ConsoleHandler(console))


def show_by(handler: logging.Handler | None) -> None:
    """Lets `handler`, and no other, show axzoo's log; None: the standard library, which shows warnings."""
    log = logging.getLogger("axzoo")
    log.handlers = [] if handler is None else [handler]
    log.setLevel(logging.NOTSET if handler is None else logging.DEBUG)


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._times = logging.Formatter(datefmt=_TIME)

    def emit(self, record: logging.LogRecord) -> None:
        from rich.text import Text

        style = _STYLES.get(record.levelno, "bold")
        time = f"{self._times.formatTime(record, _TIME)}.{record.msecs:03.0f}"
        place = Text(":").join(Text(str(part), "cyan") for part in (record.name, record.funcName, record.lineno))
        message = Text.from_ansi(record.getMessage(), style=style)  # no control characters reach the terminal
        line = Text.assemble((time, "green"), " | ", (f"{record.levelname:<8}", style), " | ", place, " - ", message)
        self._console.print(line, soft_wrap=True)


def open_console(stream: TextIO, *, color: bool = True) -> Console:
    """A console that draws and colours only on a real terminal, whatever FORCE_COLOR says: piped output stays plain."""
    from rich.console import Console

    drawable = stream.isatty() and os.environ.get("TERM") != "dumb"
    return Console(file=stream, force_terminal=drawable, no_color=None if color else True, highlight=False)


def stage_bars(console: Console) -> Progress:
    """Bars of the form "building llm decode layers ━━━ 24/24 0:05:03"; on anything but a terminal they draw nothing.

    The caller starts and stops them. Lines printed through `console` meanwhile appear above the bars.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}  ", markup=False),
        BarColumn(bar_width=None, finished_style="green"),  # rich's own finished style is grey on 16 colours
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        expand=True,
        refresh_per_second=4,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # a pipe on stdout must keep its bytes
    )


def format_elapsed(seconds: float) -> str:
    """Seconds as H:MM:SS, as the bars show them."""
    return str(timedelta(seconds=int(seconds)))
