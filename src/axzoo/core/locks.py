"""Locks between processes: the store's, and the one a build holds on its project."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from axzoo.core.errors import AxzooError

LOCK = ".lock"
"""An empty file in the store's folder; the system releases the lock when its process ends, however it ends."""

_NO_LOCKS = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def locked(root: Path, *, exclusive: bool) -> Iterator[None]:
    """Holds the lock of the store in `root`, alone or with others.

    Where the store is read-only or the file system has no locks it goes on without: bytes stay right, as files are
    whole or absent, but two processes adding one entry may keep a copy each.
    """
    handle = None
    try:
        handle = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


GUARD = Path(".snakemake/axzoo.lock")


def guard(path: Path = GUARD) -> IO[str]:
    """Waits until no other build is at work in the folder. It is this process's until the file is closed: by the
    system, however the process ends. Jobs do not inherit it; what one writes after its build's death is whole or
    nothing, and of equal bytes.

    Snakemake's own lock is a file that outlives kill -9, and would have to be removed by hand.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise AxzooError(f"{path} cannot be written ({error.strerror}): a build keeps its records there") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another build is at work in {Path.cwd()}: waiting for it to end", file=sys.stderr, flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    return file
