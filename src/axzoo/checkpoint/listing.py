"""The files in a checkpoint's folder, on this machine or in a repository of the hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

ADAPTER = "adapter_config.json"
"""The file by which transformers recognizes an adapter of peft."""


@dataclass(frozen=True)
class Listing:
    """The files of a folder, or of the top folder of a repository.

    `read` parses one of them as JSON. In messages, `shown` names the folder, `remedy` says how to restore a file that
    is damaged or missing, `choose` how to choose one of several GGUF files, and `nested` lists the subfolders that
    contain a config.json.
    """

    names: frozenset[str]
    read: Callable[[str], Any]
    shown: str
    remedy: str
    choose: str = "give the path of the one to convert"
    nested: Callable[[], Sequence[str]] = field(default=tuple)


def shown_names(names: Sequence[str], most: int = 3) -> str:
    """Names for a message; after the first `most`, only their number."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
