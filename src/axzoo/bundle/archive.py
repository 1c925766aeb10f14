"""A bundle packed into a single file: a plain tar archive with a canonical layout.

Any tar program can unpack it. Equal bundles give equal bytes: NAME/manifest.json comes first, then the other files in
the order of their names, without owners or times. The manifest therefore determines every header, and `unpack` compares
headers instead of parsing them and hashes each file as it is read. The archive is not compressed, because quantized
weights hardly shrink.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from axzoo.bundle.manifest import MANIFEST, MANIFEST_LIMIT, FileRecord, Manifest, parse_manifest
from axzoo.bundle.verification import require_intact
from axzoo.core.errors import AxzooError
from axzoo.core.files import TEMPORARY_SUFFIX, atomic_path, open_regular, read_bytes, require_space

_BLOCK = tarfile.BLOCKSIZE
_RECORD = tarfile.RECORDSIZE
_CHUNK_BYTES = 1 << 20


def pack(folder: Path, output: Path) -> None:
    """Write the bundle in `folder` to the archive `output`, atomically.

    Raises AxzooError when the bundle does not match its manifest, also if it changes while it is packed, or when
    `output` exists and is not a regular file.
    """
    if output.is_symlink() or (output.exists() and not output.is_file()):
        raise AxzooError(f"{output} exists and is not a regular file: choose another output")
    require_intact(folder)
    if output.resolve().is_relative_to(folder.resolve()):
        raise AxzooError(f"{output} is inside the bundle: write the archive somewhere else")
    data = read_bytes(folder / MANIFEST, MANIFEST_LIMIT)
    manifest = _parse(data, folder / MANIFEST)
    with atomic_path(output) as temporary, temporary.open("wb") as archive:
        archive.write(_header(manifest.name, MANIFEST, len(data)) + data + _padding(len(data)))
        for name, record in sorted(manifest.files.items()):
            archive.write(_header(manifest.name, name, record.size))
            with open_regular(folder / name) as file:
                _copy(file, archive, record, f"{folder / name} changed while it was being packed: verify the bundle")
            archive.write(_padding(record.size))
        archive.write(_end(archive.tell()))


def unpack(path: Path, target: Path) -> Manifest:
    """Unpack the archive `path` into the folder `target`, which appears only after every byte has been checked.

    Raises AxzooError when `target` exists and is not an empty folder, when `path` was not written by `pack` or is
    damaged, or when there is too little disk space.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise AxzooError(f"{target} exists: choose a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_regular(path) as archive, _temporary_folder(target) as temporary:
        manifest = _extract_manifest(archive, path, temporary)
        require_space(temporary, manifest.size)
        damaged = f"{path} is damaged or was not written by `axzoo pack`: download it again"
        for name, record in sorted(manifest.files.items()):
            _expect(archive, _header(manifest.name, name, record.size), damaged)
            (temporary / name).parent.mkdir(exist_ok=True)
            with (temporary / name).open("xb") as file:
                _copy(archive, file, record, damaged)
            _expect(archive, _padding(record.size), damaged)
            (temporary / name).chmod(_mode(name))
        _expect(archive, _end(_total_length(manifest, temporary)), damaged)
        if archive.read(1):
            raise AxzooError(damaged)
        temporary.rename(target)
    return manifest


@contextlib.contextmanager
def _temporary_folder(target: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=TEMPORARY_SUFFIX, dir=target.parent))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _extract_manifest(archive: BinaryIO, path: Path, temporary: Path) -> Manifest:
    """Extract the archive's first file, the manifest. Its tar header must be the one that its contents imply."""
    not_ours = f"{path} was not written by `axzoo pack`: it does not start with the {MANIFEST} of a bundle"
    header = archive.read(_BLOCK)
    size = _size_in(header)
    if not 0 < size <= MANIFEST_LIMIT:
        raise AxzooError(not_ours)
    data = archive.read(size)
    try:
        manifest = _parse(data, path / MANIFEST)
    except AxzooError:  # its message tells the owner of a bundle to build it again
        raise AxzooError(f"{path} is damaged or was not written by `axzoo pack`: its {MANIFEST} is not valid") from None
    padding = archive.read(-size % _BLOCK)
    if header != _header(manifest.name, MANIFEST, len(data)) or padding != _padding(len(data)):
        raise AxzooError(not_ours)
    (temporary / MANIFEST).write_bytes(data)
    return manifest


def _size_in(header: bytes) -> int:
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "strict").size
    except (tarfile.HeaderError, ValueError):
        return 0


def _parse(data: bytes, path: Path) -> Manifest:
    try:
        return parse_manifest(json.loads(data), path)
    except (ValueError, RecursionError) as error:
        raise AxzooError(f"{path} is not valid JSON: {error}") from None


def _header(bundle: str, name: str, size: int) -> bytes:
    """The tar header of a file. Raises AxzooError when a plain (ustar) header cannot represent the name or size."""
    info = tarfile.TarInfo(f"{bundle}/{name}")
    info.size, info.mode = size, _mode(name)
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except ValueError as error:
        limits = "names up to 255 bytes and files up to 8 GB"
        raise AxzooError(
            f"{bundle}/{name} exceeds the limits of plain tar, {limits} ({error}): copy the folder instead"
        ) from None


def _mode(name: str) -> int:
    return 0o755 if name.endswith(".sh") else 0o644


def _copy(source: BinaryIO, target: BinaryIO, record: FileRecord, message: str) -> None:
    """Copy one file. Raises AxzooError(message) when its size or hash does not match `record`."""
    digest, left = hashlib.sha256(), record.size
    while left:
        chunk = source.read(min(left, _CHUNK_BYTES))
        if not chunk:
            raise AxzooError(message)
        digest.update(chunk)
        target.write(chunk)
        left -= len(chunk)
    if digest.hexdigest() != record.sha256:
        raise AxzooError(message)


def _expect(archive: BinaryIO, expected: bytes, message: str) -> None:
    if archive.read(len(expected)) != expected:
        raise AxzooError(message)


def _padding(size: int) -> bytes:
    """Zeros that pad a file of `size` bytes to whole blocks."""
    return bytes(-size % _BLOCK)


def _end(length: int) -> bytes:
    """The end of an archive: at least two empty blocks, padded to a whole record."""
    return bytes(2 * _BLOCK + -(length + 2 * _BLOCK) % _RECORD)


def _total_length(manifest: Manifest, folder: Path) -> int:
    """Bytes of all files in the archive, with headers and padding."""
    sizes = [(folder / MANIFEST).stat().st_size, *(record.size for record in manifest.files.values())]
    return sum(_BLOCK + size + -size % _BLOCK for size in sizes)
