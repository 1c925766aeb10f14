"""Locks between processes: of the store, of a project while it is built, and of llm_build's work folder.

All use flock(2). The operating system releases the lock when the process ends, even after kill -9. Without flock
support, the build continues and a warning names the risk.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from axzoo.core.errors import AxzooError

logger = logging.getLogger(__name__)

STORE_LOCK = ".lock"
"""An empty file in the store's folder."""

BUILD_LOCK = Path(".snakemake/axzoo.lock")
"""In the project's folder. Contains the number that `BuildLock` describes."""

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}

_warned: set[Path] = set()


@dataclass(frozen=True)
class FileLock:
    """An open lock file. `held` is false on a file system without flock support."""

    fd: int
    held: bool

    def close(self) -> None:
        """Close the file, which releases the lock."""
        os.close(self.fd)


def lock_file(
    path: Path, unprotected: str, *, exclusive: bool = True, wait: bool = True, read_only: bool = False
) -> FileLock:
    """Take an exclusive or shared lock on `path`. Create the file if it is missing, unless `read_only`.

    On a file system without flock support, log one warning that ends in `unprotected`, which names the risk.

    Raises BlockingIOError when another process holds the lock and `wait` is false, and OSError when the file cannot be
    opened.
    """
    fd = os.open(path, os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT), 0o666)
    try:
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            # For an exclusive lock on a file opened for reading, NFS fails with EBADF.
            if error.errno not in _NO_LOCKS and not (read_only and error.errno == errno.EBADF):
                raise OSError(error.errno, error.strerror, str(path)) from None
            _warn_once(path, error, unprotected)
            return FileLock(fd, held=False)
    except BaseException:
        os.close(fd)
        raise
    return FileLock(fd, held=True)


def _warn_once(path: Path, error: OSError, unprotected: str) -> None:
    if path not in _warned:
        _warned.add(path)
        logger.warning(f"{path} cannot be locked ({error.strerror}): {unprotected}")


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder. On a file system without locks, hold nothing: `is_locked` is then false."""
    fd = os.open(folder, os.O_CLOEXEC | os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of `locked_folder`."""
    fd = os.open(folder, os.O_CLOEXEC | os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(fd)
    return False


@contextmanager
def locked_store(root: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold an exclusive or shared lock on the store in `root`.

    A store on a file system without flock support, or a read-only store without a lock file, is used unlocked. Data
    stays correct because files are written atomically.
    """
    lock = _lock_store(root / STORE_LOCK, exclusive=exclusive)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


def _lock_store(path: Path, *, exclusive: bool) -> FileLock | None:
    unprotected = (
        "do not run `axzoo store gc` or `axzoo store verify --repair` during a build; "
        "two builds that add the same entry at the same time may each keep a copy"
    )
    try:
        return lock_file(path, unprotected, exclusive=exclusive)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
    try:
        return lock_file(path, unprotected, exclusive=exclusive, read_only=True)
    except OSError as error:
        if error.errno not in {*_READ_ONLY, errno.ENOENT}:
            raise
        _warn_once(path, error, unprotected)
    return None


class BuildLock:
    """The lock that a build holds on its project while its jobs run. It records whether a plan is current.

    Snakemake plans without the lock, so that dry runs, reports, and builds with nothing to do never wait for a build. A
    plan made while another build is running may be out of date. So the lock file contains a number that every build
    increments when it starts and when it ends. The number is odd while a build is running or after one was killed.
    """

    def __init__(self, path: Path = BUILD_LOCK) -> None:
        """Read the number; call this before Snakemake plans. The file is neither created nor locked."""
        self._path = path.absolute()
        self._planned_at = 0
        with suppress(OSError):  # no build has run yet, or `acquire` reports the error
            self._planned_at = _number(self._path.read_bytes())

    def acquire(self) -> bool:
        """Wait until no other build is running in the folder, then take the lock if the plan is current.

        Returns True if the plan is current: this process then holds the lock until it ends. Returns False, without the
        lock, if the plan is out of date. Jobs do not inherit the lock. Without flock support, every plan counts as
        current.

        Raises AxzooError when the file cannot be written, SystemExit when the wait is interrupted.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = self._lock()
            return not lock.held or self._start(lock)
        except OSError as error:
            raise AxzooError(
                f"{self._path} cannot be written ({error.strerror}): a build stores its state there"
            ) from None

    def _lock(self) -> FileLock:
        unprotected = "do not start two builds in this folder at once: neither would wait for the other"
        # Snakemake's own handler waits for jobs to end, but no job has started yet.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            try:
                return lock_file(self._path, unprotected, wait=False)
            except BlockingIOError:
                print(f"another build is running in {Path.cwd()}: waiting for it to end", file=sys.stderr, flush=True)
                return lock_file(self._path, unprotected)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        finally:
            signal.signal(signal.SIGTERM, before)

    def _start(self, lock: FileLock) -> bool:
        number = _number(os.pread(lock.fd, 64, 0))
        was_killed = number % 2 == 1
        if not was_killed and number == self._planned_at:
            _write_number(lock.fd, number + 1)
            atexit.register(_end, lock, number + 2)
            return True
        if was_killed:
            _write_number(lock.fd, number + 1)
        lock.close()
        reason = "an earlier build was killed" if number == self._planned_at else "another build has run"
        print(f"{reason} in {Path.cwd()}: planning again", file=sys.stderr, flush=True)
        return False


def _number(content: bytes) -> int:
    try:
        return int(content or b"0")
    except ValueError:  # after a power cut
        return -1


def _write_number(fd: int, number: int) -> None:
    os.pwrite(fd, b"%020d\n" % number, 0)


def _end(lock: FileLock, number: int) -> None:
    with suppress(OSError):  # the number stays odd, as after kill -9
        _write_number(lock.fd, number)
    lock.close()


def start_again() -> NoReturn:
    """Re-execute the Snakemake command so that it plans again. The process ID stays the same.

    This raises SystemExit, so that Snakemake first cleans up its log, temporary folder, and working directory.

    Raises AxzooError in a program other than the `snakemake` command, which uses Snakemake as a library.
    """
    program = Path(sys.argv[0])
    if program.name != "snakemake" and program.parts[-2:] != ("snakemake", "__main__.py"):
        raise AxzooError("the plan is out of date, because another build has run: start this build again")
    atexit.register(_execute_again)
    raise SystemExit(1)  # the status if the command cannot be executed


def _execute_again() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
