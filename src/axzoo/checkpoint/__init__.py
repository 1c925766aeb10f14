"""Opening a checkpoint lazily: names, shapes and dtypes first, values a tensor at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from axzoo.core.errors import AxzooError

if TYPE_CHECKING:
    from axzoo.checkpoint.tensors import Checkpoint  # numpy, which a plan does without


def open_checkpoint(folder: Path) -> Checkpoint:
    """Opens the tensors of a Hugging Face checkpoint folder without reading their values, GPTQ's dequantized.

    Raises AxzooError when the folder holds no weights axzoo reads, damaged ones, or a quantization it does not know.
    """
    from axzoo.checkpoint.gptq import GptqCheckpoint, gptq_config

    quantization = gptq_config(folder)
    stored = _open_stored(folder)
    return stored if quantization is None else GptqCheckpoint(stored, quantization)


def _open_stored(folder: Path) -> Checkpoint:
    """The tensors as the files hold them: safetensors if there are any, else torch's pickles."""
    if _holds(folder, "model.safetensors"):
        from axzoo.checkpoint.safetensors import SafetensorsCheckpoint

        return SafetensorsCheckpoint(folder)
    if _holds(folder, "pytorch_model.bin"):
        from axzoo.checkpoint.pickled import PickledCheckpoint

        return PickledCheckpoint(folder)
    raise AxzooError(
        f"{folder} holds neither model.safetensors nor pytorch_model.bin, nor the index of either: these are the "
        f"weights axzoo reads"
    )


def _holds(folder: Path, name: str) -> bool:
    return (folder / name).exists() or (folder / f"{name}.index.json").exists()
