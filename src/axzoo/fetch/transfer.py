"""Downloads one file of a hub repository: resumes an interrupted download and verifies the result.

`huggingface_hub.hf_hub_download` discards partial files when the process ends. Therefore axzoo manages the partial file
and uses the library only for the transfer: retries, Range requests, redirects without the token.
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


_PLAIN = {"Accept-Encoding": "identity"}  # a compressed body cannot be resumed


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it. `digest` is the sha256 of a large file, the git blob id (sha1) of a small one."""

    name: str
    size: int
    digest: str

    @classmethod
    def checked(cls, name: str, size: object, digest: object) -> RemoteFile:
        """A file from the hub's response. Raises ValueError for an invalid size or digest."""
        if type(size) is not int or size < 0:
            raise ValueError(f"{name} has size {size!r}")
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest):
            raise ValueError(f"{name} has digest {digest!r}")
        return cls(name, size, digest)

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` has this size and digest."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        sha256 = len(self.digest) == 64
        algorithm = hashlib.sha256() if sha256 else hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: algorithm)
        return algorithm.hexdigest() == self.digest


def partial_path(file: RemoteFile, parts: Path) -> Path:
    """The file of bytes received so far. It is named by the digest, so another revision is never resumed."""
    return parts / file.digest


def transfer(file: RemoteFile, url: str, headers: dict[str, str], target: Path, parts: Path) -> None:
    """Downloads `url` to `target`, which is created only when it is complete and verified. Raises like `receive`."""
    receive(file, url, headers, parts).replace(target)


def receive(file: RemoteFile, url: str, headers: dict[str, str], parts: Path) -> Path:
    """Downloads `url` into the folder `parts`. Returns the path of the complete, verified file.

    Raises AxzooError when the connection is lost (the bytes received are kept for the next run) or the content differs
    from the hub's listing (the bytes are removed), and the library's HfHubHTTPError when the hub refuses access.
    """
    partial = partial_path(file, parts)
    received = partial.stat().st_size if partial.exists() else 0
    if received and received == file.size:
        logger.info(f"{file.name}: already received")
    elif received:
        logger.info(f"{file.name}: resuming at {megabytes(received)} of {megabytes(file.size)}")
    else:
        logger.info(f"{file.name}: {megabytes(file.size)}")
    try:
        with _BoundedFile(partial, received, file.size) as sink:
            if received < file.size:
                http_get(url, sink, resume_size=received, headers=headers | _PLAIN, displayed_filename=file.name)
    except httpx2.TransportError as error:
        reason = str(error) or type(error).__name__
        raise AxzooError(f"the transfer of {file.name} was interrupted ({reason}): run again to resume it") from None
    except _TooLongError:
        logger.warning(f"{file.name}: received more bytes than the hub lists")
    if not file.matches(partial):
        partial.unlink()
        raise AxzooError(f"{file.name}: the content received differs from the hub's listing and was removed: run again")
    return partial


class _TooLongError(Exception):
    """More bytes arrived than the hub lists."""


class _BoundedFile(io.BufferedWriter):
    """The partial file, opened for appending. It accepts no more bytes than the hub lists."""

    def __init__(self, path: Path, position: int, limit: int) -> None:
        path.touch()
        super().__init__(io.FileIO(path, "r+"))
        self.seek(position)
        self._limit = limit

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self.tell() + len(data) > self._limit:
            raise _TooLongError
        return super().write(data)
