"""A bundle as one file: a plain tar that any tar unpacks, of which only one form exists.

Equal bundles give equal bytes: NAME/manifest.json first, the other files by name, no owners, no times. So a reader
knows every header from the manifest, compares instead of parsing, and checks each file while it streams past. Not
compressed: quantized weights hardly shrink.
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
from axzoo.bundle.verification import refuse_deviations
from axzoo.core.errors import AxzooError
from axzoo.core.files import TEMPORARY_SUFFIX, atomic_path, require_space

_BLOCK = tarfile.BLOCKSIZE
_RECORD = tarfile.RECORDSIZE
_CHUNK_BYTES = 1 << 20


def pack(folder: Path, output: Path) -> None:
    """Writes the bundle in `folder` as the archive `output`, whole or not at all.

    Raises AxzooError when the bundle is not what its manifest says, before or while it is read, and when `output` is
    there and no ordinary file.
    """
    if output.is_symlink() or (output.exists() and not output.is_file()):
        raise AxzooError(f"{output} exists and is no ordinary file: name another")
    refuse_deviations(folder)
    if output.resolve().is_relative_to(folder.resolve()):
        raise AxzooError(f"{output} lies inside the bundle: give the archive another place")
    data = (folder / MANIFEST).read_bytes()
    manifest = _parsed(data, folder / MANIFEST)
    with atomic_path(output) as temporary, temporary.open("wb") as archive:
        archive.write(_header(manifest.name, MANIFEST, len(data)) + data + _padding(len(data)))
        for name, record in sorted(manifest.files.items()):
            archive.write(_header(manifest.name, name, record.size))
            with (folder / name).open("rb") as file:
                _copy(file, archive, record, f"{folder / name} changed while it was packed: verify the bundle")
            archive.write(_padding(record.size))
        archive.write(_end(archive.tell()))


def unpack(path: Path, target: Path) -> Manifest:
    """Makes `target` the bundle that the archive `path` holds; every byte is checked before the folder appears.

    Raises AxzooError when `target` holds something, `path` is not what `pack` writes, or the disk is too small.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise AxzooError(f"{target} exists: name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as archive, _temporary_folder(target) as temporary:
        manifest = _take_manifest(archive, path, temporary)
        require_space(temporary, manifest.size)
        damaged = f"{path} is damaged, or no archive of `axzoo pack`: fetch it again"
        for name, record in sorted(manifest.files.items()):
            _expect(archive, _header(manifest.name, name, record.size), damaged)
            (temporary / name).parent.mkdir(exist_ok=True)
            with (temporary / name).open("xb") as file:
                _copy(archive, file, record, damaged)
            _expect(archive, _padding(record.size), damaged)
            (temporary / name).chmod(_mode(name))
        _expect(archive, _end(_length(manifest, temporary)), damaged)
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


def _take_manifest(archive: BinaryIO, path: Path, temporary: Path) -> Manifest:
    """Reads and writes the archive's first file; what it says of itself must give the header just read."""
    header = archive.read(_BLOCK)
    size = _size_in(header)
    if not 0 < size <= MANIFEST_LIMIT:
        raise AxzooError(f"{path} is no archive of `axzoo pack`: it does not begin with a bundle's {MANIFEST}")
    data = archive.read(size)
    try:
        manifest = _parsed(data, path / MANIFEST)
    except AxzooError:  # its words are those of a bundle's owner
        raise AxzooError(f"{path} is damaged, or no archive of `axzoo pack`: its {MANIFEST} is no bundle's") from None
    padding = archive.read(-size % _BLOCK)
    if header != _header(manifest.name, MANIFEST, len(data)) or padding != _padding(len(data)):
        raise AxzooError(f"{path} is no archive of `axzoo pack`: it does not begin with a bundle's {MANIFEST}")
    (temporary / MANIFEST).write_bytes(data)
    return manifest


def _size_in(header: bytes) -> int:
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "strict").size
    except (tarfile.HeaderError, ValueError):
        return 0


def _parsed(data: bytes, path: Path) -> Manifest:
    try:
        return parse_manifest(json.loads(data), path)
    except (ValueError, RecursionError) as error:
        raise AxzooError(f"{path} is not valid JSON: {error}") from None


def _header(bundle: str, name: str, size: int) -> bytes:
    """The one header a file can have. Raises AxzooError for what tar's plain headers cannot say."""
    info = tarfile.TarInfo(f"{bundle}/{name}")
    info.size, info.mode = size, _mode(name)
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except ValueError as error:
        limits = "names of 255 bytes and files of 8 GB"
        raise AxzooError(f"{bundle}/{name} does not fit a plain tar, {limits} ({error}): copy the folder") from None


def _mode(name: str) -> int:
    return 0o755 if name.endswith(".sh") else 0o644


def _copy(source: BinaryIO, target: BinaryIO, record: FileRecord, otherwise: str) -> None:
    """Copies what `record` tells of; raises AxzooError(otherwise) when the bytes are others or too few."""
    digest, left = hashlib.sha256(), record.size
    while left:
        chunk = source.read(min(left, _CHUNK_BYTES))
        if not chunk:
            raise AxzooError(otherwise)
        digest.update(chunk)
        target.write(chunk)
        left -= len(chunk)
    if digest.hexdigest() != record.sha256:
        raise AxzooError(otherwise)


def _expect(archive: BinaryIO, expected: bytes, otherwise: str) -> None:
    if archive.read(len(expected)) != expected:
        raise AxzooError(otherwise)


def _padding(size: int) -> bytes:
    """Files are filled up to whole blocks."""
    return bytes(-size % _BLOCK)


def _end(length: int) -> bytes:
    """Two empty blocks, and more up to a whole record."""
    return bytes(2 * _BLOCK + -(length + 2 * _BLOCK) % _RECORD)


def _length(manifest: Manifest, folder: Path) -> int:
    sizes = [(folder / MANIFEST).stat().st_size, *(record.size for record in manifest.files.values())]
    return sum(_BLOCK + size + -size % _BLOCK for size in sizes)
