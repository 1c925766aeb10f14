"""The content-addressed store: what has been compiled once is not compiled again, for any model, chip or folder.

An entry is a data file and, written after it, a JSON receipt with its sha256. The key is the sha256 of everything that
determines the bytes. Entries are re-hashed before they are linked, so a damaged one is rebuilt and never used.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from loguru import logger

from axzoo.errors import AxzooError
from axzoo.files import atomic_path, canonical_json, read_json, write_json

_LINK_REFUSED = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOENT}
"""ENOENT: another process replaced the entry, by the same bytes, in the very moment of linking."""


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
        self._root = root

    def find(self, key: str) -> Entry | None:
        """The entry, re-hashed. A damaged one counts as absent; it stays until `add` replaces it, because another
        process may have done so already."""
        data, receipt = self._paths(key)
        if not receipt.exists():
            return None
        try:
            said = read_json(receipt)
            with data.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == said["sha256"]:
                    return Entry(data, said["sha256"], said["size"], said["about"])
        except (AxzooError, KeyError, TypeError, FileNotFoundError):  # the receipt is no receipt, or its file is gone
            pass
        logger.warning(f"store: {data} is damaged, building it again")
        return None

    def add(self, key: str, write: Callable[[BinaryIO], Mapping[str, Any]]) -> Entry:
        """Stores what `write` writes; it returns what is to be known about it, as plain JSON values."""
        data, receipt = self._paths(key)
        with atomic_path(data) as temporary:
            with temporary.open("wb") as file:
                about = write(file)
            with temporary.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = temporary.stat().st_size
        write_json(receipt, {"sha256": sha256, "size": size, "about": about})
        return Entry(data, sha256, size, about)

    def _paths(self, key: str) -> tuple[Path, Path]:
        folder = self._root / key[:2]
        return folder / key, folder / f"{key}.json"


def link(entry: Entry, target: Path) -> None:
    """Makes `target` the entry's file: a hard link where the file system allows, else a copy. Its mtime is now."""
    with atomic_path(target) as temporary:
        try:
            temporary.unlink()
            os.link(entry.path, temporary)
            os.utime(temporary)
        except OSError as error:
            if error.errno not in _LINK_REFUSED:
                raise
            temporary.unlink(missing_ok=True)
            shutil.copyfile(entry.path, temporary)
