"""The receipt that a job writes for each part it builds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json, require_format
from axzoo.parts.kind import PartId

RECEIPT_FORMAT = 2
"""The format version of receipts. Older ones are not read: the job that wrote them runs again."""


@dataclass(frozen=True)
class Receipt:
    """A part and its file: the store key, sha256, size in bytes, and in `about` what the backend recorded."""

    part: PartId
    file: str
    key: str
    sha256: str
    size: int
    about: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The content of the receipt's file."""
        content = {"file": self.file, "key": self.key, "sha256": self.sha256, "size": self.size}
        return {"format": RECEIPT_FORMAT, **self.part.to_dict(), **content, "about": dict(self.about)}


def read_receipt(path: Path) -> Receipt:
    """Reads a receipt. Raises AxzooError when it is missing, damaged or written by another version."""
    data = read_json(path)
    require_format(data, RECEIPT_FORMAT, path, "remove it and build its bundle again", oldest=RECEIPT_FORMAT)
    try:
        known = (str(data["file"]), str(data["key"]), str(data["sha256"]), int(data["size"]), dict(data["about"]))
        return Receipt(PartId.from_dict(data), *known)
    except (KeyError, TypeError, ValueError):
        raise AxzooError(f"{path} is damaged: remove it and build its bundle again") from None
