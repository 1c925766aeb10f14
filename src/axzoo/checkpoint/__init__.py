"""Opens checkpoints lazily: names, shapes and dtypes first, values on demand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from axzoo.core.errors import AxzooError

if TYPE_CHECKING:
    from axzoo.checkpoint.tensors import Checkpoint  # imports numpy, which planning does not need


def open_checkpoint(folder: Path) -> Checkpoint:
    """Opens the tensors of a Hugging Face checkpoint folder without reading their values. GPTQ is dequantized on read.

    Raises AxzooError when the folder holds no supported weights, damaged ones, or an unsupported quantization.
    """
    from axzoo.checkpoint.gptq import GptqCheckpoint, gptq_config

    quantization = gptq_config(folder)
    stored = _open_stored(folder)
    return stored if quantization is None else GptqCheckpoint(stored, quantization)


def _open_stored(folder: Path) -> Checkpoint:
    """The tensors as stored in the files: safetensors if there are any, else PyTorch pickles."""
    if _holds(folder, "model.safetensors"):
        from axzoo.checkpoint.safetensors import SafetensorsCheckpoint

        return SafetensorsCheckpoint(folder)
    if _holds(folder, "pytorch_model.bin"):
        from axzoo.checkpoint.pickled import PickledCheckpoint

        return PickledCheckpoint(folder)
    raise AxzooError(
        f"{folder} contains no weights that axzoo can read: neither model.safetensors nor pytorch_model.bin, nor an "
        f"index of either"
    )


def _holds(folder: Path, name: str) -> bool:
    return (folder / name).exists() or (folder / f"{name}.index.json").exists()
