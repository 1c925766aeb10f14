"""The store's lock: between processes that publish an entry, claim one, or collect what nobody uses."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
