"""Stamps, which show without reading a file whether it changed, and a memory of the digests of files by stamp.

A stamp is a file's size, mtime, ctime and inode. Times are compared for equality, never for order: a replaced file may
be older. Programs can set an mtime back, but not a ctime. Linking or copying a file changes its stamp and not its
content, so after a different stamp, the digest decides.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from axzoo.core.errors import AxzooError
from axzoo.core.files import canonical_json, read_json, sha256_of, write_json


class Stamp(NamedTuple):
    """A file's size in bytes, its mtime and ctime in nanoseconds, and its inode."""

    size: int
    modified_ns: int
    changed_ns: int
    inode: int

    @classmethod
    def of(cls, path: str | Path) -> Stamp:
        """The stamp of a file; symbolic links are followed. Raises OSError when there is none."""
        stat = os.stat(path)  # noqa: PTH116  # called for thousands of strings
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Stamp | None:
        """The stamp in a receipt's record of a file; None if the record has none."""
        values = tuple(data.get(name) for name in cls._fields)
        return cls(*values) if all(type(value) is int for value in values) else None  # type: ignore[arg-type]


def digest_of(value: Any) -> str:
    """The sha256 of a JSON value: equal values have equal digests."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def recorded(path: Path) -> dict[str, Any]:
    """A receipt's record of a file: its sha256 and its stamp. Reads the whole file."""
    stamp = Stamp.of(path)
    return {"sha256": sha256_of(path), **stamp._asdict()}


class Digests:
    """The sha256 of files. A file is read only if no file with its stamp was read before."""

    def __init__(self, memory: Path | None = None) -> None:
        """`memory` is the file in which `save` keeps what was read. A missing or damaged one only costs time."""
        self._memory = memory
        self._kept: dict[str, tuple[str, Stamp]] = {}
        self._known: dict[Stamp, str] = {}
        self._is_changed = False
        if memory is not None:
            for path, sha256, stamp in _read(memory):
                self._kept[path] = sha256, stamp
                self._known[stamp] = sha256

    def learn(self, stamp: Stamp | None, sha256: str) -> None:
        """Take over a stamp and digest from a receipt."""
        if stamp is not None:
            self._known.setdefault(stamp, sha256)

    def sha256(self, path: str | Path, stamp: Stamp | None = None) -> str:
        """The sha256 of a file. `stamp` is its stamp, if already taken. Raises OSError when it cannot be read."""
        stamp = stamp or Stamp.of(path)
        if stamp not in self._known:
            self._keep(path, sha256_of(Path(path)), stamp)
        return self._known[stamp]

    def is_known(self, stamp: Stamp) -> bool:
        """Whether the digest of a file with this stamp is known without reading it."""
        return stamp in self._known

    @contextmanager
    def unchanged(self, paths: Iterable[str | Path]) -> Iterator[None]:
        """The block changes the times or links of these files, but not their content: their digests stay known."""
        before = {path: self._known.get(stamp) for path in paths if (stamp := _stamp(path)) is not None}
        yield
        for path, sha256 in before.items():
            stamp = _stamp(path)
            if sha256 is not None and stamp is not None and stamp not in self._known:
                self._keep(path, sha256, stamp)

    def save(self) -> None:
        """Write the memory, if something was learned that receipts do not say."""
        if self._memory is not None and self._is_changed:
            rows = {path: [sha256, *stamp] for path, (sha256, stamp) in self._kept.items()}
            write_json(self._memory, rows)
            self._is_changed = False

    def _keep(self, path: str | Path, sha256: str, stamp: Stamp) -> None:
        self._known[stamp] = sha256
        self._kept[str(path)] = sha256, stamp
        self._is_changed = True


def _stamp(path: str | Path) -> Stamp | None:
    try:
        return Stamp.of(path)
    except OSError:
        return None


def _read(memory: Path) -> Iterator[tuple[str, str, Stamp]]:
    try:
        rows = list(read_json(memory).items()) if memory.exists() else []
        for path, (sha256, *stamp) in rows:
            yield str(path), str(sha256), Stamp(*map(int, stamp))
    except (AxzooError, AttributeError, TypeError, ValueError, OSError):
        return
