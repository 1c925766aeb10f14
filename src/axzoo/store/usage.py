"""Which bundles use which entries: told by the receipts that build jobs leave. Copies have no links to tell it by."""

from __future__ import annotations

from pathlib import Path

from axzoo.errors import AxzooError
from axzoo.files import read_json


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
