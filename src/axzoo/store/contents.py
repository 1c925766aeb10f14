"""What lies in a store, without reading the entries themselves."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axzoo.errors import AxzooError
from axzoo.files import TEMPORARY_SUFFIX, read_json
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

    @property
    def kind(self) -> str:
        """layer, post or embed: told by the weights it holds."""
        if self.about is None:
            return "unknown"
        weights = self.about.get("weight_errors")
        if not weights:
            return "embed"
        return "post" if "lm_head" in weights else "layer"

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
        about = read_json(receipt)["about"]
    except (AxzooError, KeyError, TypeError):
        about = None
    size, links = (of_data.st_size, of_data.st_nlink - 1) if of_data else (0, 0)
    age_s = time.time() - max(stat.st_mtime for stat in (of_data, of_receipt) if stat)
    return Stored(key, size, links, age_s, about if isinstance(about, dict) else None)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def leftovers(store: Store, min_age_s: float) -> list[Path]:
    """Temporary files of that age or older: those of killed processes, where no process writes for so long."""
    found = [path for folder in _folders(store.root) for path in folder.glob(f".*{TEMPORARY_SUFFIX}")]
    latest = time.time() - min_age_s
    return sorted(path for path in found if (stat := _stat(path)) is not None and stat.st_mtime <= latest)


def _folders(root: Path) -> list[Path]:
    """Raises AxzooError when `root` is not there."""
    if not root.is_dir():
        raise AxzooError(f"{root} is not a folder: name the store of a project with --store")
    return sorted(path for path in root.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir())
