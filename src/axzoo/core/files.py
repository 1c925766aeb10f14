"""Atomic writes, JSON files, checksums and disk space."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError

TEMPORARY_SUFFIX = ".part"
"""Suffix of files that are still being written; their names start with a dot. Killed processes leave them behind."""


@contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """A temporary file next to `path`, removed when the block ends unless `publish` renamed it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Renames a temporary file to `path` and gives it the usual permissions, since those of mkstemp are private."""
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)
    temporary.replace(path)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path next to `path`: renamed to `path` if the block succeeds, removed if it fails.

    Raises AxzooError when `path` is a device or a pipe, because the rename would replace it.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise AxzooError(f"{path} exists and is not a regular file: choose another path")
    with temporary_path(path) as temporary:
        yield temporary
        publish(temporary, path)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading. Links are followed.

    A pipe may never deliver data, and a device may never end, so anything else is refused. The open file is examined,
    so that it cannot be exchanged in between. Raises AxzooError for anything but a regular file, and OSError when it
    cannot be opened.
    """
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    try:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)  # would otherwise wait for a writer of a pipe
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise _not_regular(path) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _not_regular(path)
    return fd


def _not_regular(path: str | Path) -> AxzooError:
    if Path(path).is_dir():
        return AxzooError(f"{path} is a folder, but a file is needed")
    return AxzooError(f"{path} is a pipe, a socket or a device: replace it by a regular file")


def require_regular(path: Path) -> None:
    """Raises AxzooError if something other than a regular file is there, for libraries that open files themselves."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        raise _not_regular(path)


def has_file(path: Path) -> bool:
    """Whether an optional file exists. Raises AxzooError when something else is there, or a link to nothing."""
    if path.is_file():
        return True
    if path.is_symlink() or path.exists():
        raise AxzooError(f"{path} is not a regular file, or a link to nothing: replace it by a file, or remove it")
    return False


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file. Raises AxzooError when it has more than `limit` bytes; OSError if unreadable."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise _too_large(path, size, limit)
        return file.read(size)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's contents, in hexadecimal. Raises like `open_regular`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def canonical_json(value: Any) -> str:
    """The canonical JSON text of a value, the input of keys and hashes: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def json_text(value: Any) -> str:
    """JSON with sorted keys, indented, ending in a newline: equal values give equal text."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Writes `json_text` of a value."""
    write_text(path, json_text(value))


def require_size(path: Path, limit: int) -> None:
    """Raises AxzooError when the file has more than `limit` bytes."""
    size = path.stat().st_size
    if size > limit:
        raise _too_large(path, size, limit)


def _too_large(path: Path, size: int, limit: int) -> AxzooError:
    return AxzooError(f"{path} has {size} bytes, but at most {limit} are plausible for this file")


def read_json(path: Path, limit: int = 64 << 20) -> Any:
    """Parses a JSON file of at most `limit` bytes.

    Raises AxzooError when the file is missing, larger than that, not a regular file, or not valid JSON.
    """
    try:
        return json.loads(read_bytes(path, limit))
    except FileNotFoundError:
        raise AxzooError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise AxzooError(f"{path} is not valid JSON: {error}") from None


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def require_space(folder: Path, size: int) -> None:
    """Raises AxzooError when the disk of `folder`, which must exist, has less than `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise AxzooError(
            f"not enough disk space in {folder}: {megabytes(size)} needed, {megabytes(free)} free. "
            f"Free some space and run again"
        )


def require_format(data: Any, newest: int, path: Path, advice: str, oldest: int = 1) -> int:
    """The format number of `data`, read from `path`; data without a number has format 1.

    Raises AxzooError when the number is not between `oldest` and `newest`. `advice` says what to do then.
    """
    found = data.get("format", 1) if isinstance(data, dict) else None
    if type(found) is not int or found < 1:
        raise AxzooError(f"{path} is damaged: {advice}")
    if found > newest:
        raise AxzooError(
            f"{path} has format {found}, and this axzoo reads formats up to {newest}: it was written by a newer "
            f"version; use that one, or {advice}"
        )
    if found < oldest:
        raise AxzooError(f"{path} has format {found}, which an older axzoo wrote: {advice}")
    return found
