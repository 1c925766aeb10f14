"""Checkpoints in safetensors files, single or sharded.

The `safetensors` library validates each header against its file, so truncated files and forged headers are refused when
they are opened; no code is executed. It memory-maps files, and pages stay resident until the file is closed, so a file
is kept open only while rows are being read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from axzoo.checkpoint.local_files import remedy
from axzoo.checkpoint.selection import Weights
from axzoo.checkpoint.shard_index import check_placed
from axzoo.checkpoint.tensors import BLOCK_BYTES, Array, TensorInfo, repeated
from axzoo.core.errors import AxzooError
from axzoo.core.files import require_regular


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
                info = TensorInfo(name, path.name, part.get_dtype(), tuple(part.get_shape()))
                first = self.tensors.setdefault(name, info)
                if first is not info and not self._is_copy(first, info, part):
                    raise repeated(path, first)

    def _is_copy(self, first: TensorInfo, info: TensorInfo, part: Any) -> bool:
        """Whether `part`, which `info` describes, has the same values as `first` in another file."""
        if replace(first, file=info.file) != info or not info.shape:
            return False
        step = max(1, BLOCK_BYTES // max(1, 8 * math.prod(info.shape[1:])))
        rows = ((start, min(start + step, info.shape[0])) for start in range(0, info.shape[0], step))
        return all(
            self.read_rows(info.name, start, stop).tobytes() == part[start:stop].tobytes() for start, stop in rows
        )

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
    require_regular(path)
    try:
        file: Any = safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise AxzooError(f"{path} is missing: {remedy(path.parent)}") from None
    except (SafetensorError, OSError) as error:
        raise AxzooError(f"{path} is damaged or incomplete ({error}): {remedy(path.parent)}") from None
    with file:
        yield file
