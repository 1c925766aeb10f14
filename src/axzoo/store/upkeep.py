"""Keeping a store in order: damaged entries, entries that no bundle uses, what killed processes left.

Safe beside builds: what a build has found or added is young, and only what is old is collected.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from axzoo.store import Store
from axzoo.store.contents import Stored, contents, leftovers, look
from axzoo.store.lock import locked


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
        with locked(store.root, exclusive=True):  # nobody is between data and receipt now
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
        path.unlink(missing_ok=True)
    return removed, temporary


def _collected(store: Store, key: str, min_age_s: float) -> bool:
    with locked(store.root, exclusive=True):
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
