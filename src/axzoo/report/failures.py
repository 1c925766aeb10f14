"""What the display shows of failures: Snakemake's errors in one line, and the last lines of a job's log."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from axzoo.core.errors import DISK_FULL

_TAIL_LINES, _TAIL_BYTES = 10, 16384
_CALLS = r"(?:\n  File \"[^\n]*)*"
_WORKFLOW_ERROR = re.compile(rf'WorkflowError in file "[^\n]*", line \d+:\n(.*?){_CALLS}\s*', re.DOTALL)
_AXZOO_ERROR = re.compile(r"InputFunctionException in [^\n]*:\nError:\n  AxzooError: (.*?)\nWildcards:.*", re.DOTALL)
_TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n.*\n(\S[^\n]*)\s*", re.DOTALL)
_SLURM_OUT_OF_MEMORY = re.compile(r"OUT_OF_MEMORY|exceeded memory limit|oom.kill", re.IGNORECASE)
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def without_control(text: str) -> str:
    """`text` without control characters and escape sequences; line breaks and tabs are kept."""
    return _CONTROL.sub("", text)


def without_calls(text: str) -> str:
    """An error message of Snakemake without the functions and lines of code where it arose. For messages written for
    users this leaves the message, for tracebacks the last line."""
    for pattern in (_WORKFLOW_ERROR, _AXZOO_ERROR, _TRACEBACK):
        if found := pattern.fullmatch(text):
            return found[1]
    return text


def end_of(how: str, message: str, mem_mb: int | None, out_of_memory: bool) -> str:
    """What ended a job if it could not log the reason itself: a signal or a full disk. "" otherwise.

    `how` is the exit status or signal of its command, `message` what the executor and its log say. `out_of_memory` says
    whether Linux has killed a process for lack of memory during the build.
    """
    if re.search(rf"exit status {DISK_FULL}\b", how):
        return "no space left on the disk, not even for the log: free some space and run again"
    requested = "" if mem_mb is None else f" (it had requested {mem_mb} MB)"
    if _SLURM_OUT_OF_MEMORY.search(message):
        return f"killed, because it used more memory than it had requested{requested and f': {mem_mb} MB'}"
    found = re.search(r"exit status (\d+)|died with <Signals\.\w+: (\d+)>", how)
    number = 0 if found is None else int(found[1]) - 128 if found[1] else int(found[2])
    try:
        name = signal.Signals(number).name
    except ValueError:
        return ""
    if number != signal.SIGKILL:
        return f"killed by signal {number} ({name})"
    advice = "run fewer jobs at once (--cores), or allow them less memory together (--resources mem_mb=N)"
    if out_of_memory:
        return f"killed (signal 9) by Linux, because memory ran out{requested}: {advice}"
    return f"killed (signal 9): if nobody did that, memory ran out{requested}: {advice}"


def append_line(path: Path, line: str) -> bool:
    """Adds a line to a job's log. Returns False if that is not possible, for example because the disk is full."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    except OSError:
        return False
    return True


def display_path(path: Path, home: Path) -> Path:
    """`path`, which is relative to the current folder, as a path relative to `home`, or absolute if outside `home`."""
    absolute = path.absolute()
    return absolute.relative_to(home) if absolute.is_relative_to(home) else absolute


def log_tail(path: Path) -> list[str]:
    """The last lines of a job's log, up to 10 from its last 16 KiB, without blank lines and control characters.

    Raises OSError when the file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = (without_control(line).rstrip() for line in text.splitlines())
    return [line for line in lines if line][-_TAIL_LINES:]


def config_block(path: Path) -> str:
    """The Config(...) block of a log, or "" if there is none. Raises OSError when the file cannot be read."""
    found = re.search(r"^Config\(\n(    .*\n)*\)$", path.read_text("utf-8", "replace"), re.MULTILINE)
    return found[0] if found else ""
