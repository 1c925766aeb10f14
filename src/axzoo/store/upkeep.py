"""What is in a store, which bundles use it, and keeping it in order: damaged and unused entries, leftovers.

Safe beside builds: what a build has found or added is young, and only what is old is collected.
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
from axzoo.core.locks import locked_store
from axzoo.store import Store

_FOLDER = re.compile(r"[0-9a-f]{2}")
_KEY = re.compile(r"[0-9a-f]{64}")
_WORDS = ("weight_type", "hidden_state_type", "scale_rule", "rounding")


@dataclass(frozen=True)
class Stored:
    """An entry as it lies there.

    `size` is of its data in bytes, `links` counts the other names its data has (in bundles), `age_s` is since it was
    last found, added or linked. `about` is what the receipt knows of it, None where there is no receipt to be read.
    """

    key: str
    size: int
    links: int
    age_s: float
    about: Mapping[str, Any] | None
    part: Mapping[str, Any] | None

    @property
    def kind(self) -> str:
        """The part kind, "unknown" where the receipt does not say."""
        return str((self.part or {}).get("kind", "unknown"))

    @property
    def words(self) -> str:
        """The choices it was made by: "s8 bf16", "s4 bf16 mse gptq g32"."""
        about = self.about or {}
        words = [str(about[key]) for key in _WORDS if key in about]
        return " ".join([*words, *([f"g{about['weight_group_size']}"] if "weight_group_size" in about else [])])


def contents(store: Store) -> Iterator[Stored]:
    """The entries, in the order of their keys; half an entry, data or receipt alone, is one too."""
    for folder in _folders(store.root):
        names = {path.name.removesuffix(".json") for path in folder.iterdir()}
        for key in sorted(filter(_KEY.fullmatch, names)):
            stored = look(store, key) if key.startswith(folder.name) else None
            if stored is not None:
                yield stored


def look(store: Store, key: str) -> Stored | None:
    """One entry; None when nothing of it is there."""
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
    return Stored(key, size, links, age_s, about, part)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def leftovers(store: Store, min_age_s: float) -> list[Path]:
    """Temporary files of that age or older: those of killed processes, where no process writes for so long."""
    folders = [store.root, *_folders(store.root)]
    found = [path for folder in folders for path in folder.glob(f".*{TEMPORARY_SUFFIX}")]
    latest = time.time() - min_age_s
    return sorted(path for path in found if (stat := _stat(path)) is not None and stat.st_mtime <= latest)


def _folders(root: Path) -> list[Path]:
    """Raises AxzooError when `root` is not there."""
    if not root.is_dir():
        raise AxzooError(f"{root} is not a folder: name the store of a project with --store")
    return sorted(path for path in root.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir())


def used_by(receipts: Path) -> dict[str, list[str]]:
    """The bundles ("AX650/NAME"), sorted, by the keys of the entries they use.

    `receipts` holds CHIP/NAME/*.json, and the bundles lie beside it, CHIP/NAME: one whose folder is gone uses nothing.

    Raises AxzooError when `receipts` is not there, or one of them is damaged: who uses what would be unknown.
    """
    if not receipts.is_dir():
        raise AxzooError(f"{receipts} is not a folder: name the receipts of the store's project with --receipts")
    users: dict[str, list[str]] = {}
    for folder in sorted(receipts.glob("*/*/")):
        bundle = folder.relative_to(receipts)
        if not (receipts.parent / bundle).is_dir():
            continue
        for key in {_key(path) for path in folder.glob("*.json")}:
            users.setdefault(key, []).append(bundle.as_posix())
    return users


def _key(receipt: Path) -> str:
    content = read_json(receipt)
    key = content.get("key") if isinstance(content, dict) else None
    if not isinstance(key, str):
        raise AxzooError(f"{receipt} is damaged: remove it and build its bundle again")
    return key


@dataclass(frozen=True)
class Damage:
    """A damaged entry and what is wrong with it."""

    stored: Stored
    reason: str


def find_damage(store: Store, repair: bool) -> Iterator[Damage]:
    """Re-hashes everything; with `repair` removes what is damaged, so that it is built again when it is needed."""
    for stored in contents(store):
        if store.intact(stored.key) is not None:
            continue
        with locked_store(store.root, exclusive=True):  # nobody is between data and receipt now
            now = look(store, stored.key)
            if now is None or store.intact(stored.key) is not None:
                continue
            reason = _reason(store, now)
            if repair:
                _remove(store, stored.key)
        yield Damage(now, reason)


def _reason(store: Store, stored: Stored) -> str:
    data, receipt = store.paths(stored.key)
    if not receipt.exists():
        return "it has no receipt: a process was killed while it added it"
    if not data.exists():
        return "its file is gone"
    return "its receipt cannot be read" if stored.about is None else "its bytes are not those its receipt tells of"


def collect(store: Store, used: Collection[str], min_age_s: float, dry_run: bool) -> tuple[list[Stored], list[Path]]:
    """Removes entries whose keys are not in `used`, and temporary files, all of `min_age_s` seconds or older.

    Returns what it removed, or with `dry_run` would remove.
    """
    entries = [stored for stored in contents(store) if stored.key not in used and stored.age_s >= min_age_s]
    temporary = leftovers(store, min_age_s)
    if dry_run:
        return entries, temporary
    removed = [stored for stored in entries if _collected(store, stored.key, min_age_s)]
    for path in temporary:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return removed, temporary


def _collected(store: Store, key: str, min_age_s: float) -> bool:
    with locked_store(store.root, exclusive=True):
        now = look(store, key)
        if now is None or now.age_s < min_age_s:  # a build has found it meanwhile
            return False
        _remove(store, key)
        return True


def _remove(store: Store, key: str) -> None:
    """The receipt first: data without one is never used."""
    data, receipt = store.paths(key)
    receipt.unlink(missing_ok=True)
    data.unlink(missing_ok=True)
