"""The receipt that a job writes for each part it builds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json, require_format
from axzoo.core.fingerprint import fingerprint
from axzoo.core.stamps import digest_of
from axzoo.parts.kind import PartId

RECEIPT_FORMAT = 3
"""The format version of receipts. Older ones are not read: the job that wrote them runs again."""


@dataclass(frozen=True)
class Receipt:
    """A part and its file: the store key, sha256, size in bytes, and in `about` what the backend recorded. `inputs` is
    the digest of everything that the job read (`inputs_digest`)."""

    part: PartId
    file: str
    key: str
    sha256: str
    size: int
    about: Mapping[str, Any]
    inputs: str

    def to_dict(self) -> dict[str, Any]:
        """The content of the receipt's file."""
        content = {"file": self.file, "key": self.key, "sha256": self.sha256, "size": self.size, "inputs": self.inputs}
        return {"format": RECEIPT_FORMAT, **self.part.to_dict(), **content, "about": dict(self.about)}


def inputs_digest(lock: str, choices: str, compiler: str, calibration: str | None) -> str:
    """The digest of a part job's inputs: the sha256 of its lock file, the recipe fields and the compiler's identity as
    canonical JSON, and the sha256 of the hidden states that calibrate it, if any."""
    return hashlib.sha256("\n".join((lock, choices, compiler, calibration or "")).encode()).hexdigest()


def calibrate_code() -> str:
    """The fingerprint of the code that determines a calibration."""
    return fingerprint("axzoo.calibrate.states", "axzoo.calibrate.tokens")


def calibration_inputs(locks: Mapping[str, str], text: str | None, tokens: int) -> str:
    """The digest of a calibration's inputs: the sha256 of each lock file by name, the sha256 of the text, if any, the
    number of tokens, and the code."""
    return digest_of([dict(locks), text, tokens, calibrate_code()])


def states_file(part: PartId) -> str:
    """The name of the file with the hidden states that calibrate a part."""
    return f"{part.name}.safetensors"


def read_receipt(path: Path) -> Receipt:
    """Reads a receipt. Raises AxzooError when it is missing, damaged or written by another version."""
    data = read_json(path)
    require_format(data, RECEIPT_FORMAT, path, "remove it and build its bundle again", oldest=RECEIPT_FORMAT)
    try:
        known = (str(data["file"]), str(data["key"]), str(data["sha256"]), int(data["size"]), dict(data["about"]))
        return Receipt(PartId.from_dict(data), *known, str(data["inputs"]))
    except (KeyError, TypeError, ValueError):
        raise AxzooError(f"{path} is damaged: remove it and build its bundle again") from None
