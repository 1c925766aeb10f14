"""Checkpoints written by torch.save: `pytorch_model.bin`, single or sharded.

They are read only with torch's restricted unpickler (weights_only), which builds tensors and runs no code. The files
are memory-mapped: opening one reads names and shapes, and rows are read from disk on demand. Files written before
torch 1.6 and archives with compressed entries cannot be mapped and are refused.
"""

from __future__ import annotations

import logging
import re
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import torch

from axzoo.checkpoint.local_files import remedy
from axzoo.checkpoint.selection import Weights
from axzoo.checkpoint.shard_index import check_placed
from axzoo.checkpoint.tensors import Array, TensorInfo, repeated
from axzoo.checkpoint.writing import CONVERTED, tensor_bytes, write_safetensors
from axzoo.core.errors import AxzooError
from axzoo.core.files import megabytes, open_regular, require_space

logger = logging.getLogger(__name__)

_NAMES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.complex64: "C64",
    torch.int32: "I32", torch.int64: "I64", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""The names that safetensors gives to dtypes. Tensors of other dtypes are listed, but cannot be read."""

_MAX_GROWTH = 4
"""Limit of the converted size, in sizes of the files. Tensors may share values, such as a tied head."""

_MAX_PICKLE_BYTES = 16 << 20
"""The pickle holds names and shapes, about 100 bytes per tensor; values are stored in separate entries."""


class PickledCheckpoint:
    """The tensors in the files that `weights` names."""

    def __init__(self, folder: Path, weights: Weights) -> None:
        self._values: dict[str, torch.Tensor] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for file in weights.files:
            self._open(folder / file)
        if weights.placed is not None:
            check_placed(f"{folder}/{weights.index}", weights.placed, self.tensors, remedy(folder))

    def _open(self, path: Path) -> None:
        for name, value in _load(path).items():
            if not isinstance(name, str) or not name.isprintable():
                raise AxzooError(f"{path} has an entry with an unprintable name, {name!r:.80}: it is not a model")
            if not _is_plain_tensor(value):
                raise AxzooError(
                    f"{path}: entry {name} is not a dense tensor: the file must contain a model's state_dict"
                )
            if name in self.tensors:
                if self._values[name].dtype != value.dtype or not torch.equal(self._values[name], value):
                    raise repeated(path, self.tensors[name])
                continue
            self._values[name] = value.detach()
            dtype = _NAMES.get(value.dtype, str(value.dtype))
            self.tensors[name] = TensorInfo(name, path.name, dtype, tuple(value.shape))

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        value = self._values[name]
        rows = (value[start:stop] if value.ndim else value).contiguous()
        if rows.dtype != torch.bfloat16:
            return rows.numpy()
        values: Array = rows.view(torch.int16).numpy().view(ml_dtypes.bfloat16)  # torch cannot convert bf16 to numpy
        return values


def convert_pickled(folder: Path, weights: Weights, output: Path) -> None:
    """Writes the tensors as model.safetensors into the folder `output`, so that jobs that read them need no torch.

    Raises AxzooError when a file is damaged or is not a state_dict, and when the disk is full.
    """
    checkpoint = PickledCheckpoint(folder, weights)
    size = sum(tensor_bytes(checkpoint, name) for name in checkpoint.tensors)
    stored = sum((folder / file).stat().st_size for file in weights.files)
    if size > _MAX_GROWTH * stored:
        raise AxzooError(
            f"{folder / weights.files[0]}: the tensors have {megabytes(size)}, but the files only {megabytes(stored)}: "
            f"this is not a model"
        )
    require_space(output, size)
    logger.info(f"converting {len(checkpoint.tensors)} tensors of {', '.join(weights.files[:3])} to {CONVERTED}")
    write_safetensors(output / CONVERTED, checkpoint)


def _load(path: Path) -> dict[Any, Any]:
    """The file's content with memory-mapped tensors. Raises AxzooError if it is damaged or contains anything else."""
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a forged pickle makes the unpickler raise almost anything
        name = re.search(r"GLOBAL ([\w.]{1,80})", str(error))
        if name:
            raise AxzooError(
                f"{path} is refused because its pickle refers to {name[1]}, which is not a tensor; no code was run"
            ) from None
        raise AxzooError(f"{path} is damaged ({_first_sentence(error)}): {remedy(path.parent)}") from None
    if not isinstance(content, dict):
        raise AxzooError(f"{path} contains a {type(content).__name__}, not a dict of tensors: it is not a model")
    return content


def _check_archive(path: Path) -> None:
    """Raises AxzooError unless the file is a zip archive whose entries can be mapped."""
    try:
        with open_regular(path) as file:
            if file.read(4) != b"PK\3\4":
                raise AxzooError(
                    f"{path} is not in the zip format that torch has written since version 1.6: convert "
                    f"an older file with torch.load and torch.save, otherwise {remedy(path.parent)}"
                )
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except FileNotFoundError:
        raise AxzooError(f"{path} is missing: {remedy(path.parent)}") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise AxzooError(f"{path} is damaged or incomplete ({error}): {remedy(path.parent)}") from None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise AxzooError(
            f"{path} is a compressed archive, which cannot be memory-mapped: save it again with torch.save"
        )
    pickled = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    if pickled > _MAX_PICKLE_BYTES:
        raise AxzooError(f"{path} contains a pickle of {pickled} bytes, but at most {_MAX_PICKLE_BYTES} are plausible")


def _is_plain_tensor(value: Any) -> bool:
    """Whether this is a dense CPU tensor: not sparse, quantized, nested, lazily negated or conjugated, or meta."""
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_nested or value.is_neg() or value.is_conj())
    )


def _first_sentence(error: Exception) -> str:
    """The first sentence of torch's messages, which can be several paragraphs long."""
    sentence = re.split(r"\. |\n", str(error), maxsplit=1)[0]
    return sentence if sentence and sentence.isprintable() else type(error).__name__
