"""Opening a checkpoint lazily: names, shapes and dtypes first, values a tensor at a time."""

from __future__ import annotations

from pathlib import Path

from axzoo.checkpoint.tensors import Checkpoint
from axzoo.errors import AxzooError


def open_checkpoint(folder: Path) -> Checkpoint:
    """Opens the tensors of a Hugging Face checkpoint folder without reading their values.

    Raises AxzooError when the folder holds no weights axzoo reads, or damaged ones.
    """
    if (folder / "model.safetensors").exists() or (folder / "model.safetensors.index.json").exists():
        from axzoo.checkpoint.safetensors import SafetensorsCheckpoint

        return SafetensorsCheckpoint(folder)
    raise AxzooError(
        f"{folder} holds neither model.safetensors nor model.safetensors.index.json: these are the weights axzoo reads"
    )
