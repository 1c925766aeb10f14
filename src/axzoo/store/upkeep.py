"""Store maintenance: list entries and the bundles that use them, find damage, collect unused entries.

Safe while builds run: a build refreshes the mtime of entries it finds or adds, and only old ones are collected.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.core.files import TEMPORARY_SUFFIX, read_json
from axzoo.core.locks import is_locked, locked_store
from axzoo.store import USERS, Store

_FOLDER = re.compile(r"[0-9a-f]{2}")
_KEY = re.compile(r"[0-9a-f]{64}")
_SUMMARY_KEYS = ("weight_type", "hidden_state_type", "scale_rule", "rounding")


@dataclass(frozen=True)
class StoredEntry:
    """An entry on disk.

    `size` is that of the data in bytes, `links` the number of other hard links to it (in bundles), `age_s` the time
    since it was last found, added or linked. `about` comes from the receipt; None if the receipt cannot be read.
    """

    key: str
    size: int
    links: int
    age_s: float
    about: Mapping[str, Any] | None
    part: Mapping[str, Any] | None

    @property
    def kind(self) -> str:
        """The part kind, "unknown" if the receipt does not record it."""
        return str((self.part or {}).get("kind", "unknown"))

    @property
    def recipe_summary(self) -> str:
        """The recipe it was built with: "s8 bf16", "s4 bf16 mse gptq g32"."""
        about = self.about or {}
        values = [str(about[key]) for key in _SUMMARY_KEYS if key in about]
        return " ".join([*values, *([f"g{about['weight_group_size']}"] if "weight_group_size" in about else [])])


def contents(store: Store) -> Iterator[StoredEntry]:
    """Yields the entries in the order of their keys, including incomplete ones with only data or only a receipt."""
    for folder in _folders(store.root):
        names = {path.name.removesuffix(".json") for path in folder.iterdir()}
        for key in sorted(filter(_KEY.fullmatch, names)):
            entry = read_entry(store, key) if key.startswith(folder.name) else None
            if entry is not None:
                yield entry


def read_entry(store: Store, key: str) -> StoredEntry | None:
    """One entry; None if neither its data nor its receipt exists."""
    data, receipt = store.paths(key)
    of_data, of_receipt = _stat(data), _stat(receipt)
    if of_data is None and of_receipt is None:
        return None
    try:
        known = dict(read_json(receipt))
    except (AxzooError, TypeError, ValueError):
        known = {}
    size, links = (of_data.st_size, of_data.st_nlink - 1) if of_data else (0, 0)
    age_s = time.time() - max(stat.st_mtime for stat in (of_data, of_receipt) if stat)
    about, part = (value if isinstance(value := known.get(key), dict) else None for key in ("about", "part"))
    return StoredEntry(key, size, links, age_s, about, part)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def leftovers(store: Store, min_age_s: float) -> list[Path]:
    """Temporary files of at least that age, left by killed processes if no write takes that long, and folders of jobs
    that have ended."""
    folders = [store.root, *_folders(store.root)]
    found = [path for folder in folders for path in folder.glob(f".*{TEMPORARY_SUFFIX}")]
    latest = time.time() - min_age_s
    old = (path for path in found if (stat := _stat(path)) is not None and stat.st_mtime <= latest)
    return sorted(path for path in old if not (path.is_dir() and is_locked(path)))


def _folders(root: Path) -> list[Path]:
    """The folders of entries. Raises AxzooError when `root` does not exist."""
    if not root.is_dir():
        raise AxzooError(f"{root} is not a folder: pass a project's store with --store")
    return sorted(path for path in root.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir())


def used_by(receipts: Path, store: Store | None = None) -> dict[str, list[str]]:
    """Maps the key of each used entry to the sorted bundles that use it: "AX650/NAME", or the folder of a bundle of
    another project that shares `store`.

    `receipts` contains CHIP/NAME/*.json, and the bundles are next to it in CHIP/NAME. A bundle whose folder was removed
    uses nothing.

    Raises AxzooError when `receipts` does not exist or a receipt is damaged, because usage would then be unknown.
    """
    if not receipts.is_dir():
        raise AxzooError(f"{receipts} is not a folder: pass the receipts of the store's project with --receipts")
    users: dict[str, list[str]] = {}
    for folder in sorted(receipts.glob("*/*/")):
        bundle = folder.relative_to(receipts)
        if not (receipts.parent / bundle).is_dir():
            continue
        for key in {_key(path) for path in folder.glob("*.json")}:
            users.setdefault(key, []).append(bundle.as_posix())
    for folder, bundle in _elsewhere(store, receipts) if store else ():
        if bundle.is_dir():
            for key in {_key(path) for path in folder.glob("*.json") if _is_receipt(path)}:
                users.setdefault(key, []).append(str(bundle))
    return users


def forget_removed_bundles(store: Store) -> None:
    """Removes the records of bundles whose folders were removed. Those of a project that cannot be reached are kept."""
    for record, _, bundle in _users(store):
        if not bundle.exists() and bundle.parent.parent.is_dir():
            record.unlink(missing_ok=True)


def _elsewhere(store: Store, receipts: Path) -> Iterator[tuple[Path, Path]]:
    """The folders of receipts outside `receipts`, and their bundles."""
    for _, folder, bundle in _users(store):
        if not folder.is_relative_to(receipts.resolve()):
            yield folder, bundle


def _users(store: Store) -> Iterator[tuple[Path, Path, Path]]:
    """The records of bundles that were built with the store: the record's path, the receipts and the bundle."""
    for record in sorted(filter(lambda path: _KEY.fullmatch(path.name), (store.root / USERS).glob("*"))):
        try:
            content = read_json(record)
            yield record, Path(content["receipts"]), Path(content["bundle"])
        except (KeyError, TypeError):
            raise AxzooError(f"{record} is damaged: remove it and build the bundles of its project again") from None


def _is_receipt(path: Path) -> bool:
    """Whether a file is the receipt of a part: `axzoo compile` may be told to write it to any folder."""
    content = read_json(path)
    return isinstance(content, dict) and {"key", "sha256"} <= content.keys()


def _key(receipt: Path) -> str:
    content = read_json(receipt)
    key = content.get("key") if isinstance(content, dict) else None
    if not isinstance(key, str):
        raise AxzooError(f"{receipt} is damaged: remove it and build its bundle again")
    return key


@dataclass(frozen=True)
class Damage:
    """A damaged entry, and what is wrong with it."""

    entry: StoredEntry
    reason: str


def find_damage(store: Store, repair: bool) -> Iterator[Damage]:
    """Re-hashes all entries. With `repair`, removes damaged ones, so that they are rebuilt when needed."""
    for entry in contents(store):
        if store.intact(entry.key) is not None:
            continue
        with locked_store(store.root, exclusive=True):  # no process is writing an entry now
            now = read_entry(store, entry.key)
            if now is None or store.intact(entry.key) is not None:
                continue
            reason = _reason(store, now)
            if repair:
                _remove(store, entry.key)
        yield Damage(now, reason)


def _reason(store: Store, entry: StoredEntry) -> str:
    data, receipt = store.paths(entry.key)
    if not receipt.exists():
        return "it has no receipt: a process was killed while adding it"
    if not data.exists():
        return "its data is missing"
    return "its receipt cannot be read" if entry.about is None else "its data does not match its receipt"


def collect(
    store: Store, used: Collection[str], min_age_s: float, dry_run: bool
) -> tuple[list[StoredEntry], list[Path]]:
    """Removes entries whose keys are not in `used`, and temporary files, if they are at least `min_age_s` seconds old.

    Returns what was removed, or would be removed with `dry_run`.
    """
    entries = [entry for entry in contents(store) if entry.key not in used and entry.age_s >= min_age_s]
    temporary = leftovers(store, min_age_s)
    if dry_run:
        return entries, temporary
    removed = [entry for entry in entries if _collected(store, entry.key, min_age_s)]
    for path in temporary:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return removed, temporary


def _collected(store: Store, key: str, min_age_s: float) -> bool:
    with locked_store(store.root, exclusive=True):
        now = read_entry(store, key)
        if now is None or now.age_s < min_age_s:  # a build has found it in the meantime
            return False
        _remove(store, key)
        return True


def _remove(store: Store, key: str) -> None:
    """Removes the receipt first, because data without a receipt is never used."""
    data, receipt = store.paths(key)
    receipt.unlink(missing_ok=True)
    data.unlink(missing_ok=True)
