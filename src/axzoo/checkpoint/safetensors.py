"""Checkpoints in safetensors files, single or sharded.

The `safetensors` library validates each header against its file, so truncated files and forged headers are refused when
they are opened; no code is executed. It memory-maps files, and pages stay resident until the file is closed, so a file
is kept open only while rows are being read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from axzoo.checkpoint.local_files import remedy
from axzoo.checkpoint.selection import Weights
from axzoo.checkpoint.shard_index import check_placed
from axzoo.checkpoint.tensors import Array, TensorInfo
from axzoo.core.errors import AxzooError


class SafetensorsCheckpoint:
    """The tensors in the files that `weights` names."""

    def __init__(self, folder: Path, weights: Weights) -> None:
        self._folder = folder
        self.tensors: dict[str, TensorInfo] = {}
        for file in weights.files:
            self._list(folder / file)
        if weights.placed is not None:
            check_placed(f"{folder}/{weights.index}", weights.placed, self.tensors, remedy(folder))

    def _list(self, path: Path) -> None:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                if not name.isprintable():
                    raise AxzooError(f"{path} has a tensor with an unprintable name, {name!r}: it is not a model")
                part = file.get_slice(name)
                if name in self.tensors:
                    raise AxzooError(f"{path} repeats tensor {name}, which is also in {self.tensors[name].file}")
                self.tensors[name] = TensorInfo(name, path.name, part.get_dtype(), tuple(part.get_shape()))

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        info = self.tensors[name]
        with _opened(self._folder / info.file) as file:
            try:
                rows: Array = file.get_slice(name)[start:stop]
            except SafetensorError as error:
                path = self._folder / info.file
                raise AxzooError(f"{path}: tensor {name} cannot be read ({error}): {remedy(path.parent)}") from None
        return rows


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        file: Any = safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise AxzooError(f"{path} is missing: {remedy(path.parent)}") from None
    except (SafetensorError, OSError) as error:
        raise AxzooError(f"{path} is damaged or incomplete ({error}): {remedy(path.parent)}") from None
    with file:
        yield file
