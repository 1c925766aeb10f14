"""Room on the disk, asked for before it is needed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError

TEMPORARY_SUFFIX = ".part"
"""Of files being written, whose names begin with a dot; what a killed process leaves."""


@contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, gone when the block ends unless `publish` made it `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Makes a temporary file `path`, with the permissions of an ordinary one: mkstemp's are private."""
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)
    temporary.replace(path)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; it becomes `path` if the block succeeds and vanishes if it does not.

    Raises AxzooError when `path` is a device or a pipe, which a file would replace.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise AxzooError(f"{path} exists and is no ordinary file: name another")
    with temporary_path(path) as temporary:
        yield temporary
        publish(temporary, path)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's contents, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: what keys and digests are taken over."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Sorted, indented and ending in a newline, so that equal values are equal bytes."""
    write_text(path, json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def require_size(path: Path, limit: int) -> None:
    """Raises AxzooError when the file has more than `limit` bytes."""
    size = path.stat().st_size
    if size > limit:
        raise AxzooError(f"{path} has {size} bytes; more than {limit} is not plausible for this file")


def read_json(path: Path, limit: int = 64 << 20) -> Any:
    """Parses a JSON file of at most `limit` bytes.

    Raises AxzooError when it is missing, larger, or not JSON.
    """
    try:
        require_size(path, limit)
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise AxzooError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise AxzooError(f"{path} is not valid JSON: {error}") from None


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def need_space(folder: Path, size: int) -> None:
    """Raises AxzooError when the disk of `folder` (which exists) has less than `size` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise AxzooError(
            f"no space for {megabytes(size)} in {folder}: its disk has {megabytes(free)} left; free some and run again"
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
