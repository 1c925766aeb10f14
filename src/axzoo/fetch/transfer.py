"""One file of a hub repository onto the disk: resumed where an earlier run broke off, and verified.

`huggingface_hub.hf_hub_download` throws a broken file away when the process ends, so the partial file is ours and only
the transfer itself (retries, Range, redirects that leave the token behind) is the library's.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub.file_download import http_get

from axzoo.core.errors import AxzooError
from axzoo.core.files import megabytes

logger = logging.getLogger(__name__)


_PLAIN = {"Accept-Encoding": "identity"}  # a range of a compressed body could not be continued


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it. `digest` is the sha256 of a large file, the git blob id (sha1) of a small one."""

    name: str
    size: int
    digest: str

    @classmethod
    def checked(cls, name: str, size: object, digest: object) -> RemoteFile:
        """The file from a hub's answer. Raises ValueError when size or digest cannot be what they should."""
        if type(size) is not int or size < 0:
            raise ValueError(f"{name} has size {size!r}")
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest):
            raise ValueError(f"{name} has digest {digest!r}")
        return cls(name, size, digest)

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` is this one, byte for byte."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        sha256 = len(self.digest) == 64
        algorithm = hashlib.sha256() if sha256 else hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: algorithm)
        return algorithm.hexdigest() == self.digest


def partial_path(file: RemoteFile, parts: Path) -> Path:
    """Where the bytes received so far lie; named by the content, so another revision's are never continued."""
    return parts / file.digest


def transfer(file: RemoteFile, url: str, headers: dict[str, str], target: Path, parts: Path) -> None:
    """Downloads `url` to `target`, which appears complete and verified or not at all.

    Raises AxzooError when the connection breaks (the bytes received are kept for the next run) and when what arrived
    is not what the hub listed (they are removed); the library's HfHubHTTPError when the hub refuses.
    """
    partial = partial_path(file, parts)
    have = partial.stat().st_size if partial.exists() else 0
    if have:
        logger.info(f"{file.name}: resuming at {megabytes(have)} of {megabytes(file.size)}")
    else:
        logger.info(f"{file.name}: {megabytes(file.size)}")
    try:
        with _BoundedFile(partial, have, file.size) as sink:
            if have < file.size:
                http_get(url, sink, resume_size=have, headers=headers | _PLAIN, displayed_filename=file.name)
    except httpx2.TransportError as error:
        reason = str(error) or type(error).__name__
        raise AxzooError(f"the transfer of {file.name} broke off ({reason}): run again, it resumes") from None
    except _TooLongError:
        logger.warning(f"{file.name}: more bytes arrived than the hub lists")
    if not file.matches(partial):
        partial.unlink()
        raise AxzooError(f"{file.name} arrived with other bytes than the hub lists; they are removed: run again")
    partial.replace(target)


class _TooLongError(Exception):
    """More bytes than listed."""


class _BoundedFile(io.BufferedWriter):
    """The partial file, open at its end; it takes no more bytes than the hub listed."""

    def __init__(self, path: Path, position: int, limit: int) -> None:
        path.touch()
        super().__init__(io.FileIO(path, "r+"))
        self.seek(position)
        self._limit = limit

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self.tell() + len(data) > self._limit:
            raise _TooLongError
        return super().write(data)
