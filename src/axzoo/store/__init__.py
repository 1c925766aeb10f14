"""The content-addressed store: what has been compiled once is not compiled again, for any model, chip or folder.

An entry is a data file and, written after it, a JSON receipt with its sha256. The key is the sha256 of everything that
determines the bytes. Entries are re-hashed before they are linked, so a damaged one is rebuilt and never used. The
receipt's time is when the entry was last found or added: `upkeep` collects old ones that no bundle uses.
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
from axzoo.core.locks import locked_store

logger = logging.getLogger(__name__)


_LINK_REFUSED = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOENT}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


def content_key(determinants: Mapping[str, Any]) -> str:
    """The key of what these plain JSON values determine."""
    return hashlib.sha256(canonical_json(determinants).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A stored file."""

    path: Path
    sha256: str
    size: int
    about: Mapping[str, Any]


class Store:
    """A folder of entries. Any number of processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, key: str) -> Entry | None:
        """The entry, re-hashed. A damaged one counts as absent; it stays until `add` replaces it, because another
        process may have done so already."""
        data, receipt = self.paths(key)
        if not receipt.exists():
            return None
        entry = self.intact(key)
        if entry is None:
            logger.warning(f"store: {data} is damaged, building it again")
            return None
        with locked_store(self.root, exclusive=False):
            return entry if _claimed(receipt) else None

    def add(
        self, key: str, write: Callable[[BinaryIO], Mapping[str, Any]], part: Mapping[str, Any] | None = None
    ) -> Entry:
        """Stores what `write` writes; it returns what is known about the file, as plain JSON values."""
        data, _ = self.paths(key)
        with temporary_path(data) as temporary:
            with temporary.open("wb") as file:
                about = write(file)
            return self.adopt(key, temporary, about, part)

    def adopt(self, key: str, file: Path, about: Mapping[str, Any], part: Mapping[str, Any] | None = None) -> Entry:
        """Moves `file`, which is in the store's file system, into the store. `part` says which part of a model it is.

        Where another process has meanwhile added the entry, its file stays and ours is not used: a second file of equal
        bytes would leave bundles linked to one or the other.
        """
        data, receipt = self.paths(key)
        ours = Entry(data, sha256_of(file), file.stat().st_size, about)
        data.parent.mkdir(parents=True, exist_ok=True)
        with locked_store(self.root, exclusive=True):
            theirs = self.intact(key)
            if theirs is not None and _claimed(receipt):
                return theirs
            publish(file, data)
            write_json(receipt, {"sha256": ours.sha256, "size": ours.size, "about": about, "part": part})
        return ours

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """An empty folder in the store's file system, for one job; it is removed when the block ends."""
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".job.", suffix=TEMPORARY_SUFFIX, dir=self.root, ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder)

    def intact(self, key: str) -> Entry | None:
        """The entry, if its bytes are those its receipt tells of. Leaves its age alone."""
        data, receipt = self.paths(key)
        try:
            said = read_json(receipt)
            if sha256_of(data) == said["sha256"]:
                return Entry(data, said["sha256"], said["size"], said["about"])
        except (AxzooError, KeyError, TypeError, FileNotFoundError):  # the receipt is no receipt, or its file is gone
            pass
        return None

    def paths(self, key: str) -> tuple[Path, Path]:
        """Where an entry's data and its receipt lie, whether or not they do."""
        folder = self.root / key[:2]
        return folder / key, folder / f"{key}.json"


def _claimed(receipt: Path) -> bool:
    """Makes an entry young, so that it is not collected before it is linked. False when it has just been collected."""
    try:
        os.utime(receipt)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _READ_ONLY:  # from a read-only store nothing is collected
            raise
    return True


def link(entry: Entry, target: Path) -> None:
    """Makes `target` the entry's file: a hard link where the file system allows, else a copy. Its mtime is now."""
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
    except FileNotFoundError:  # another process replaced a damaged entry in the very moment of linking
        os.link(path, temporary)
