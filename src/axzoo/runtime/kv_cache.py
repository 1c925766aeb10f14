"""The key and value caches of all layers: what the model remembers of the context."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class KVCache:
    """Two arrays [1, S, D] for each layer; row p belongs to the token at position p."""

    def __init__(self, num_layers: int, length: int, width: int, dtype: DTypeLike) -> None:
        self._keys = [np.zeros((1, length, width), dtype) for _ in range(num_layers)]
        self._values = [np.zeros((1, length, width), dtype) for _ in range(num_layers)]

    def first(self, layer: int, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Keys and values [1, count, D] of the first positions: views, contiguous."""
        return self._keys[layer][:, :count], self._values[layer][:, :count]

    def write(self, layer: int, position: int, keys: NDArray[Any], values: NDArray[Any]) -> None:
        """Stores the rows [1, n, D] of the tokens at `position` and after it."""
        end = position + keys.shape[1]
        self._keys[layer][:, position:end] = keys
        self._values[layer][:, position:end] = values
