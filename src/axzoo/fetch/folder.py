"""A checkpoint on this machine: a folder is used in place, and the receipt points to it; a GGUF file is converted."""

from __future__ import annotations

import logging
from pathlib import Path

from axzoo.checkpoint.selection import checkpoint_files, is_weights, refuse_foreign_files
from axzoo.core.errors import AxzooError
from axzoo.fetch.sources import FolderSource, hashed_file, timestamped_file, write_receipt

logger = logging.getLogger(__name__)


def fetch_folder(source: FolderSource, output: Path) -> None:
    """Writes the receipt for `source` into `output`. Weights are not hashed here; the lock hashes each tensor.

    A GGUF file, or a folder with one GGUF file and no other weights, is converted into a checkpoint in `output`.

    Raises AxzooError when the folder is missing or contains no checkpoint, or the GGUF file cannot be converted.
    """
    root = Path(source.path).resolve()
    gguf = find_gguf(root)
    if gguf is not None:
        _fetch_gguf(gguf, source, output)
        return
    names = checkpoint_files(_file_names(root), str(root))
    logger.info(f"using {len(names)} files of {root} in place")
    files = {name: (timestamped_file if is_weights(name) else hashed_file)(root / name) for name in names}
    write_receipt(output, source, files, root=str(root))


def find_gguf(root: Path) -> Path | None:
    """The GGUF file to convert, if `root` is one or is a folder with one and no other weights; otherwise None.

    Raises AxzooError when `root` is neither a folder nor a GGUF file, or contains several GGUF files.
    """
    if root.is_file() and root.suffix == ".gguf":
        return root
    if not root.is_dir():
        raise AxzooError(f"{root} is not a folder: give the folder of a Hugging Face checkpoint, or a GGUF file")
    names = _file_names(root)
    found = [name for name in names if name.endswith(".gguf")]
    if not found or any(is_weights(name) for name in names):
        return None
    if len(found) > 1:
        raise AxzooError(f"{root} contains {len(found)} GGUF files: give the path of the one to convert")
    return root / found[0]


def _file_names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_file())


def _fetch_gguf(gguf: Path, source: FolderSource, output: Path) -> None:
    from axzoo.checkpoint.gguf.conversion import FILES, convert

    output.mkdir(parents=True, exist_ok=True)
    refuse_foreign_files(output, FILES)
    convert(gguf, output)
    write_receipt(output, source, {name: hashed_file(output / name) for name in FILES})
