"""Pickled weights and GGUF files are converted once per model, so that all jobs read safetensors."""

from __future__ import annotations

import shutil
from pathlib import Path

from axzoo.checkpoint.local_files import LocalCheckpoint, require_contained
from axzoo.checkpoint.selection import CheckpointFiles, refuse_foreign_files
from axzoo.core.files import atomic_path
from axzoo.fetch.sources import FetchedFile, hashed_file


def is_converted(files: CheckpointFiles) -> bool:
    return files.weights.format != "safetensors"


def fetched_names(files: CheckpointFiles) -> list[str]:
    """The names of the checkpoint's files after the fetch, converted if necessary."""
    if files.weights.format == "gguf":
        from axzoo.checkpoint.gguf.conversion import FILES

        return sorted(FILES)
    return sorted((*files.small, "model.safetensors")) if is_converted(files) else files.names


def prepare_output(output: Path, files: CheckpointFiles) -> None:
    """Creates the folder `output`. Raises AxzooError when it contains files of another checkpoint."""
    output.mkdir(parents=True, exist_ok=True)
    refuse_foreign_files((path.name for path in output.iterdir()), fetched_names(files), str(output))


def convert_checkpoint(found: LocalCheckpoint, output: Path) -> dict[str, FetchedFile]:
    """Converts the checkpoint into the folder `output`. Returns the records of the files there.

    Raises AxzooError when the weights are damaged or of an unsupported kind.
    """
    weights = found.files.weights
    if weights.format == "gguf":
        from axzoo.checkpoint.gguf.conversion import convert

        names = convert(found.folder / weights.files[0], output)
    else:
        names = fetched_names(found.files)
        from axzoo.checkpoint.pickled import convert_pickled

        convert_pickled(found.folder, weights, output)
        require_contained(found.folder, found.files.small)
        for name in found.files.small:
            with atomic_path(output / name) as temporary:
                shutil.copyfile(found.folder / name, temporary)
    return {name: hashed_file(output / name) for name in names}
