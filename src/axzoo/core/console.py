"""Console output of a running command: log lines, and progress bars on a terminal."""

from __future__ import annotations

import io
import logging
import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


SUCCESS = 25
"""Log level between INFO and WARNING."""

_TIME = "%Y-%m-%d %H:%M:%S"
_STYLES = {logging.DEBUG: "bold blue", SUCCESS: "bold green", logging.WARNING: "bold yellow", logging.ERROR: "bold red"}

logging.addLevelName(SUCCESS, "SUCCESS")


def require_utf8() -> None:
    """Executes this program again in Python's UTF-8 mode if the locale has another encoding.

    Otherwise, Python would decode arguments and encode file names and text in Latin-1 or ASCII. Child processes inherit
    the mode.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606


def open_standard_streams() -> None:
    """Makes stdin, stdout and stderr usable if they are closed or cannot encode what is written.

    Characters that the encoding of stdout (`PYTHONIOENCODING`) lacks are written as `\\xe9`, as Python does on stderr.
    A closed stream (`>&-`) is opened on /dev/null. Otherwise, the next file to be opened would receive its output.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is `fd`
            os.set_inheritable(fd, True)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def log_to_stream(stream: TextIO) -> None:
    """Sends axzoo's log to `stream`, formatted as `time | SUCCESS  | name:function:line - message`.

    rich is imported for terminals only: its import takes a tenth of the run time of a small job.
    """
    if stream.isatty():
        from axzoo.core.console import open_console

        log_to_console(open_console(stream))
    else:
        handler = logging.StreamHandler(stream)
        place = "{name}:{funcName}:{lineno}"
        handler.setFormatter(
            logging.Formatter(f"{{asctime}}.{{msecs:03.0f}} | {{levelname:<8}} | {place} - {{message}}", _TIME, "{")
        )
        set_log_handler(handler)


def log_to_console(console: Console) -> None:
    """Sends axzoo's log to `console`, above its progress bars and in colour where it supports colours."""
    set_log_handler(_ConsoleHandler(console))


def set_log_handler(handler: logging.Handler | None) -> None:
    """Makes `handler` the only handler of axzoo's log. None restores the logging module's default: warnings only."""
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
    """A console that draws bars and colours only on a real terminal.

    FORCE_COLOR is ignored: piped output stays plain.
    """
    from rich.console import Console

    drawable = stream.isatty() and os.environ.get("TERM") != "dumb"
    return Console(file=stream, force_terminal=drawable, no_color=None if color else True, highlight=False)


def stage_bars(console: Console) -> Progress:
    """Progress bars of the form "building llm decode layers ━━━ 24/24 0:05:03", drawn only on a terminal.

    The caller starts and stops them. Lines printed through `console` meanwhile appear above the bars.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}  ", markup=False),
        BarColumn(bar_width=None, finished_style="green"),  # rich's default is grey on terminals with 16 colours
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        expand=True,
        refresh_per_second=4,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # what a pipe on stdout receives must not change
    )


def format_elapsed(seconds: float) -> str:
    """Seconds as H:MM:SS, the format of the progress bars."""
    return str(timedelta(seconds=int(seconds)))
