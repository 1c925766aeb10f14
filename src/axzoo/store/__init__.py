"""The content-addressed store: a part that was compiled once is reused for any model, chip or folder.

An entry is a data file and a JSON receipt with its sha256, written after it. The key is the sha256 of everything that
determines the bytes. Entries are re-hashed before they are linked, so a damaged one is rebuilt and never used. The
receipt's mtime is the last time the entry was added or found; `upkeep` collects old entries that no bundle uses.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from axzoo.core.errors import AxzooError
from axzoo.core.files import (
    TEMPORARY_SUFFIX,
    atomic_path,
    canonical_json,
    publish,
    read_json,
    sha256_of,
    temporary_path,
    write_json,
)
from axzoo.core.locks import locked_folder, locked_store

logger = logging.getLogger(__name__)


_LINK_REFUSED = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOENT}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


USERS = "users"
"""Folder in the store with one file for each bundle that was built with it."""


def content_key(determinants: Mapping[str, Any]) -> str:
    """The key of the entry that these JSON values determine."""
    return hashlib.sha256(canonical_json(determinants).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A stored file."""

    path: Path
    sha256: str
    size: int
    about: Mapping[str, Any]


class Store:
    """A folder of entries. Any number of processes can use it concurrently."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, key: str) -> Entry | None:
        """The entry, after verifying its hash, or None.

        A damaged entry counts as absent. It is left for `add` to replace, because another process may have replaced it
        already.
        """
        data, receipt = self.paths(key)
        if not receipt.exists():
            return None
        entry = self.intact(key)
        if entry is None:
            logger.warning(f"store: {data} is damaged: building it again")
            return None
        with locked_store(self.root, exclusive=False):
            return entry if _refresh_mtime(receipt) else None

    def add(
        self, key: str, write: Callable[[BinaryIO], Mapping[str, Any]], part: Mapping[str, Any] | None = None
    ) -> Entry:
        """Stores the bytes that `write` writes; the JSON values it returns become the entry's `about`."""
        data, _ = self.paths(key)
        with temporary_path(data) as temporary:
            with temporary.open("wb") as file:
                about = write(file)
            return self.adopt(key, temporary, about, part)

    def adopt(self, key: str, file: Path, about: Mapping[str, Any], part: Mapping[str, Any] | None = None) -> Entry:
        """Moves `file` into the store, whose file system it must be on. `part` identifies the model part it holds.

        If another process has added the entry in the meantime, its file is kept and ours is discarded. Otherwise some
        bundles would link to one copy and some to the other.
        """
        data, receipt = self.paths(key)
        ours = Entry(data, sha256_of(file), file.stat().st_size, about)
        data.parent.mkdir(parents=True, exist_ok=True)
        with locked_store(self.root, exclusive=True):
            theirs = self.intact(key)
            if theirs is not None and _refresh_mtime(receipt):
                return theirs
            publish(file, data)
            write_json(receipt, {"sha256": ours.sha256, "size": ours.size, "about": about, "part": part})
        return ours

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """An empty folder for one job, on the store's file system. It is removed when the block ends.

        It is locked meanwhile, so that `axzoo store gc` leaves it alone.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(
                prefix=".job.", suffix=TEMPORARY_SUFFIX, dir=self.root, ignore_cleanup_errors=True
            ) as folder,
            locked_folder(Path(folder)),
        ):
            yield Path(folder)

    def register(self, receipts: Path, bundle: Path) -> None:
        """Records a folder of receipts and its bundle, so that garbage collection in any project that shares the store
        knows which entries the bundle uses."""
        known = {"receipts": str(receipts.resolve()), "bundle": str(bundle.resolve())}
        path = self.root / USERS / content_key(known)
        try:
            if not path.exists():
                write_json(path, known)
        except OSError as error:
            if error.errno not in _READ_ONLY:  # nothing is collected from a read-only store
                raise

    def intact(self, key: str) -> Entry | None:
        """The entry if its data matches the sha256 in its receipt, else None. Does not change its mtime."""
        data, receipt = self.paths(key)
        try:
            content = read_json(receipt)
            if sha256_of(data) == content["sha256"]:
                return Entry(data, content["sha256"], content["size"], content["about"])
        except (AxzooError, KeyError, TypeError, FileNotFoundError):  # the receipt is invalid, or the data is missing
            pass
        return None

    def paths(self, key: str) -> tuple[Path, Path]:
        """The paths of an entry's data and receipt, whether or not they exist."""
        folder = self.root / key[:2]
        return folder / key, folder / f"{key}.json"


def _refresh_mtime(receipt: Path) -> bool:
    """Refreshes an entry's mtime, so that it is not collected before it is linked. False if it was just collected."""
    try:
        os.utime(receipt)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _READ_ONLY:  # nothing is collected from a read-only store
            raise
    return True


def link(entry: Entry, target: Path) -> None:
    """Makes `target` a hard link to the entry's file, or a copy if links are not possible; its mtime is now."""
    with atomic_path(target) as temporary:
        try:
            temporary.unlink()
            _link(entry.path, temporary)
            os.utime(temporary)
        except OSError as error:
            if error.errno not in _LINK_REFUSED:
                raise
            temporary.unlink(missing_ok=True)
            shutil.copyfile(entry.path, temporary)


def _link(path: Path, temporary: Path) -> None:
    try:
        os.link(path, temporary)
    except FileNotFoundError:  # another process is just replacing a damaged entry
        os.link(path, temporary)
