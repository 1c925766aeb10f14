"""A checkpoint on this machine. A folder is used in place, and the receipt points to it; pickled weights and GGUF files
are converted, once for all jobs."""

from __future__ import annotations

import logging
from pathlib import Path

from axzoo.checkpoint.local_files import LocalCheckpoint, find_checkpoint
from axzoo.fetch.converted import convert_checkpoint, is_converted, prepare_output
from axzoo.fetch.sources import FetchedFiles, FolderSource, hashed_file, stamped_file, write_receipt

logger = logging.getLogger(__name__)


def fetch_folder(source: FolderSource, output: Path) -> None:
    """Writes the receipt for `source` into `output`. Weights in place are not hashed here; the lock hashes each tensor.

    Raises AxzooError when the folder is missing or contains no checkpoint, or a file cannot be converted.
    """
    found = local_checkpoint(source.path)
    report_unused(found)
    if is_converted(found.files):
        before = files_in_place(found)
        prepare_output(output, found.files)
        files = convert_checkpoint(found, output)
        write_receipt(output, source, FetchedFiles(files), converted_from=before)
    else:
        logger.info(f"using {len(found.files.names)} files of {found.folder} in place")
        write_receipt(output, source, files_in_place(found))


def local_checkpoint(path: str) -> LocalCheckpoint:
    """The checkpoint at `path`. Links are followed for folders; a GGUF file keeps its name, which a link may give it.

    Raises AxzooError when there is none.
    """
    given = Path(path)
    return find_checkpoint(given.resolve() if given.is_dir() else given.absolute())


def report_unused(found: LocalCheckpoint) -> None:
    """Logs files with weights that are not used. A leftover index of the same format may be a mistake: a warning."""
    unused, used = found.files.unused, found.files.weights
    if unused:
        stale = used.index is None and f"{used.files[0]}.index.json" in unused
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        logger.log(
            logging.WARNING if stale else logging.INFO,
            f"using {used.files[0]} of {found.folder}, as transformers does, and not {', '.join(unused[:3])}{more}",
        )


def files_in_place(found: LocalCheckpoint) -> FetchedFiles:
    """The record of a checkpoint on this machine: small files with their hashes, weights only with their stamps."""
    large = {*found.files.weights.files}
    records = {
        name: (stamped_file if name in large else hashed_file)(found.folder / name) for name in found.files.names
    }
    return FetchedFiles(records, str(found.folder))
