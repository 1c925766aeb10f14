"""A checkpoint folder on this machine: nothing is copied, the receipt points at it."""

from __future__ import annotations

from pathlib import Path

from loguru import logger

from axzoo.errors import AxzooError
from axzoo.fetch.receipt import FileRecord, digested, write_receipt
from axzoo.fetch.selection import checkpoint_files, is_weights
from axzoo.zoo.sources import FolderSource


def fetch_folder(source: FolderSource, output: Path) -> None:
    """Writes the receipt for `source` into `output`. Weights are not digested here: the lock does it tensor by tensor.

    Raises AxzooError when the folder is missing or holds no checkpoint.
    """
    root = Path(source.path).resolve()
    if not root.is_dir():
        raise AxzooError(f"{root} is not a folder: give the folder of a Hugging Face checkpoint")
    names = checkpoint_files((path.name for path in root.iterdir() if path.is_file()), str(root))
    logger.info("using {} files of {} in place", len(names), root)
    files = {
        name: FileRecord((root / name).stat().st_size, None) if is_weights(name) else digested(root / name)
        for name in names
    }
    write_receipt(output, source, files, root=str(root))
