"""The weights stored in a file, as the oracle uses them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from axzoo.backends.host.contents import FileContents
from axzoo.model.oracle import StreamedWeights

BLOCK = 1 << 20
"""Weights that are dequantized at a time: few enough to stay in the CPU cache."""


class StoredWeights(StreamedWeights):
    """The weights of a file for the oracle, fp32 by role: matrices [out_features, in_features], vectors [features].

    They are dequantized whenever they are used, so the file's pages are all that is in memory.
    """

    def __init__(self, contents: FileContents) -> None:
        self._tensors = {name: t for name, t in contents.tensors.items() if name.endswith((".weight", ".bias"))}
        self._contents = contents

    def __getitem__(self, role: str) -> Tensor:
        return torch.cat(list(self.rows(role)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def rows(self, role: str) -> Iterator[Tensor]:
        values = self._tensors[role].array()
        if values.ndim != 2:
            yield torch.from_numpy(values.astype(np.float32))
            return
        scales = scales_of(self._contents, role)
        step = max(64, BLOCK // len(values))
        for start in range(0, values.shape[1], step):
            block = torch.from_numpy(values[:, start : start + step].astype(np.float32))
            if scales is not None:
                columns = scales[:, None, start : start + step]
                block.view(len(scales), -1, block.shape[1]).mul_(columns)
            yield block.T

    def shape(self, role: str) -> tuple[int, ...]:
        return self._tensors[role].shape[::-1]

    @property
    def parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self._tensors.values())


def scales_of(contents: FileContents, role: str) -> Tensor | None:
    """The scales [groups, out_features] of a matrix, None if it has none."""
    scale = contents.tensors.get(scale_name(role))
    return None if scale is None else torch.from_numpy(np.atleast_2d(scale.array()).astype(np.float32))


def scale_name(role: str) -> str:
    """The name of the scales of the matrix `role`."""
    return f"{role.removesuffix('.weight')}.scale"
