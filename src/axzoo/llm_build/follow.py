"""Showing a job's log while the job writes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


class Follower:
    """Shows the log at `path`, whole lines at a time, from when a job begins it: what is there already is an earlier
    job's. `wording` is applied to what is shown.
    """

    def __init__(self, path: Path, wording: Callable[[str], str]) -> None:
        self._path = path
        self._wording = wording
        self._earlier = self._state()
        self._shown = 0

    def show_new(self) -> None:
        """Shows the lines that have been written since the last time."""
        if self._state() != self._earlier and self._path.exists():
            self._show(whole_lines=True)

    def show_rest(self) -> None:
        """Shows what has not been shown yet: all of it, where no job had to run."""
        if self._path.exists():
            self._show(whole_lines=False)

    def _show(self, whole_lines: bool) -> None:
        with self._path.open("rb") as file:
            file.seek(self._shown)
            new = file.read()
        if whole_lines:
            new = new[: new.rfind(b"\n") + 1]
        self._shown += len(new)
        print(self._wording(new.decode(errors="replace")), end="", flush=True)

    def _state(self) -> tuple[int, int, int] | None:
        if not self._path.exists():
            return None
        stat = self._path.stat()
        return stat.st_ino, stat.st_mtime_ns, stat.st_size
