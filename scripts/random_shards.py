"""Writes checkpoints of random weights for benchmarks, in bounded memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file


def layer_matrices(hidden: int, intermediate: int, kv_size: int) -> dict[str, tuple[int, int]]:
    """The shapes of the matrices of a layer of Qwen2, by name."""
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv_size, hidden),
        "self_attn.v_proj": (kv_size, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }


class RandomShards:
    """Writes a checkpoint of random bf16 tensors, one shard after the other."""

    def __init__(self, folder: Path, count: int, seed: int = 0) -> None:
        self._folder, self._count, self._written = folder, count, 0
        self._names: dict[str, str] = {}
        self._random = np.random.default_rng(seed)

    def matrix(self, rows: int, columns: int, spread: float | None = None) -> NDArray[Any]:
        """Normal values [rows, columns] with the standard deviation `spread` (default: columns ** -0.5)."""
        values = np.empty((rows, columns), ml_dtypes.bfloat16)
        for start in range(0, rows, 1024):
            block = values[start : start + 1024]
            block[:] = self._random.standard_normal(block.shape, np.float32) * np.float32(spread or columns**-0.5)
        return values

    def vector(self, size: int, mean: float) -> NDArray[Any]:
        """Normal values [size] with a standard deviation of 0.1."""
        return (self._random.standard_normal(size, np.float32) * 0.1 + mean).astype(ml_dtypes.bfloat16)

    def save(self, tensors: dict[str, NDArray[Any]]) -> None:
        """Write the next shard."""
        shard = f"model-{self._written + 1:05d}-of-{self._count:05d}.safetensors"
        save_file(tensors, self._folder / shard)
        self._names.update(dict.fromkeys(tensors, shard))
        self._written += 1

    def finish(self) -> None:
        """Write the index, after the last shard."""
        index = {"metadata": {}, "weight_map": self._names}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index))
