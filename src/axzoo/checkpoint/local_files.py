"""The checkpoint in a folder on this machine: the files that belong to it, and whether they are there."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from axzoo.checkpoint.listing import Listing
from axzoo.checkpoint.selection import TOKENIZER_FILES, CheckpointFiles, Weights, is_gguf, select_files, select_weights
from axzoo.core.errors import AxzooError
from axzoo.core.files import open_regular, read_json

RECEIPT = "source.json"
"""The receipt of a fetch, in the folder that it was fetched into."""

_LFS = b"version https://git-lfs"
_POINTER_BYTES = 1024
"""Pointers are shorter than this; their specification says so."""


@dataclass(frozen=True)
class LocalCheckpoint:
    """A checkpoint in `folder`. For a GGUF file, `folder` is the one that contains it."""

    folder: Path
    files: CheckpointFiles

    @property
    def paths(self) -> list[Path]:
        return [self.folder / name for name in self.files.names]

    @property
    def gguf(self) -> Path | None:
        weights = self.files.weights
        return self.folder / weights.files[0] if weights.format == "gguf" else None


def find_checkpoint(path: Path) -> LocalCheckpoint:
    """The checkpoint at `path`, a folder or a GGUF file, which may be a link without the extension.

    Raises AxzooError when there is none, and when a file of it is missing, a link to nothing or a Git LFS pointer.
    """
    if path.is_dir():
        found = LocalCheckpoint(path, select_files(list_folder(path)))
    elif path.exists() and _is_gguf_file(path):
        gguf = Weights("gguf", (path.name,))
        found = LocalCheckpoint(path.parent, CheckpointFiles(gguf, (), ()))
    elif path.exists():
        raise AxzooError(f"{path} is not a folder: give the folder of a Hugging Face checkpoint, or a GGUF file")
    else:
        raise _absent(path, "is not a folder: give the folder of a Hugging Face checkpoint, or a GGUF file")
    check_files(found.folder, found.files.names)
    require_contained(found.folder, [name for name in found.files.small if name in TOKENIZER_FILES])
    return found


def find_weights(folder: Path) -> Weights:
    """The weights in a checkpoint's folder. Raises AxzooError like `find_checkpoint`; config.json may be missing."""
    weights = select_weights(list_folder(folder))
    check_files(folder, weights.names)
    return weights


def list_folder(folder: Path) -> Listing:
    """The files in a folder, including links to nothing. Raises AxzooError when the folder is missing."""

    def read(name: str) -> object:
        check_files(folder, [name])
        return read_json(folder / name)

    def nested() -> list[str]:
        candidates = [*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")]
        return sorted(path.parent.relative_to(folder).as_posix() for path in candidates)

    try:
        with os.scandir(folder) as entries:
            names = frozenset(entry.name for entry in entries if not _is_folder(entry))
    except (FileNotFoundError, NotADirectoryError):
        raise AxzooError(f"{folder} is not a folder") from None
    return Listing(names, read, str(folder), remedy(folder), nested=nested)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def remedy(folder: Path) -> str:
    """How to restore a damaged or missing file in a checkpoint's folder."""
    if (folder / RECEIPT).exists():
        return f"remove the folder {folder} and fetch it again"
    return "copy or download the file again"


def check_files(folder: Path, names: Iterable[str]) -> None:
    """Raises AxzooError unless all are regular files with their own content, rather than Git LFS pointers."""
    for name in names:
        path = folder / name
        try:
            status = path.stat()
        except OSError:
            raise _absent(path, f"is missing: {remedy(folder)}") from None
        if not stat.S_ISREG(status.st_mode):
            raise AxzooError(f"{path} is not a regular file: a checkpoint consists of files")
        if status.st_size < _POINTER_BYTES and _is_lfs_pointer(path):
            raise AxzooError(
                f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in the repository's clone, or "
                f"download the file"
            )


def require_contained(folder: Path, names: Iterable[str]) -> None:
    """Raises AxzooError for a file that is a link to somewhere outside the folder, or outside the blobs of its
    repository in the hub's cache.

    These files are copied into bundles, which are given to others: a link in a checkpoint from somewhere else must not
    add a file of this machine. Weights are only read, so that they may be links to another disk. The folder itself may
    be a link, which the user gave.
    """
    root = folder.resolve()
    allowed = [root]
    blobs = root.parent.parent / "blobs"
    if root.parent.name == "snapshots" and not blobs.is_symlink():
        allowed.append(blobs)
    for name in names:
        target = (root / name).resolve()
        if not any(target.is_relative_to(top) for top in allowed):
            copy = shlex.join(["cp", "--remove-destination", str(target), str(folder / name)])
            raise AxzooError(
                f"{folder / name} is a link to {target}, which is outside the checkpoint, and bundles contain a copy "
                f"of this file: if they may, replace the link by the file, `{copy}`; otherwise remove the link"
            )


def _is_lfs_pointer(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(len(_LFS)) == _LFS


def _is_gguf_file(path: Path) -> bool:
    if is_gguf(path.name):
        return True
    with open_regular(path) as file:
        return file.read(4) == b"GGUF"


def _absent(path: Path, otherwise: str) -> AxzooError:
    """The error for a path that does not exist: it is a link to nothing, or `otherwise`."""
    if path.is_symlink():
        return AxzooError(
            f"{path} is a link to nothing ({path.readlink()} cannot be found): copy the folder again with the files "
            f"that its links point to (cp -rL), or download it again"
        )
    return AxzooError(f"{path} {otherwise}")
