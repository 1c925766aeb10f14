"""Opens checkpoints lazily: names, shapes and dtypes first, values on demand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from axzoo.checkpoint.tensors import Checkpoint  # imports numpy, which planning does not need


def open_checkpoint(folder: Path) -> Checkpoint:
    """Opens the tensors of a Hugging Face checkpoint folder without reading their values. GPTQ is dequantized on read.

    Raises AxzooError when the folder holds no supported weights, damaged ones, or an unsupported quantization.
    """
    from axzoo.checkpoint.gptq import GptqCheckpoint, gptq_config

    quantization = gptq_config(folder)
    stored = open_stored(folder)
    return stored if quantization is None else GptqCheckpoint(stored, quantization)


def open_stored(folder: Path) -> Checkpoint:
    """The tensors as stored in the files of a folder. Raises AxzooError like `open_checkpoint`."""
    from axzoo.checkpoint.local_files import find_weights

    weights = find_weights(folder)
    if weights.format == "safetensors":
        from axzoo.checkpoint.safetensors import SafetensorsCheckpoint

        return SafetensorsCheckpoint(folder, weights)
    if weights.format == "pickled":
        from axzoo.checkpoint.pickled import PickledCheckpoint

        return PickledCheckpoint(folder, weights)
    from axzoo.checkpoint.gguf.reader import GgufCheckpoint

    return GgufCheckpoint(folder / weights.files[0])
