"""The numeric description of a vision tower with a resampler, as in MiniCPM-V 2.0: an image in, embedding rows out.

The tower is a ViT (SigLIP) without class token. The resampler is one cross-attention whose queries are learned; its
keys carry two-dimensional sine-cosine positions, so it accepts any grid of patches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from axzoo.model.slices import GRID_LIMIT
from axzoo.model.spec import TensorRef, VisionSpec

Floats = NDArray[np.float32]


def position_ids(rows: int, columns: int) -> NDArray[np.int32]:
    """The position ids of a grid of patches, row by row: [rows * columns]."""
    grid = np.arange(rows)[:, None] * GRID_LIMIT + np.arange(columns)
    return grid.reshape(-1).astype(np.int32)


def sincos_positions(features: int, rows: int, columns: int) -> Floats:
    """Two-dimensional sine-cosine positions [rows * columns, features] fp32.

    The first half of the features encodes the column, the second half the row, each as sines, then cosines, of
    position / 10000 ** (2 i / (features / 2)) (MiniCPM-V 2.0, resampler.py: get_2d_sincos_pos_embed).
    """
    frequencies = 10000.0 ** -(np.arange(features // 4, dtype=np.float64) / (features / 4))

    def encode(positions: NDArray[np.int64]) -> Floats:
        angles = positions[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

    row, column = np.divmod(np.arange(rows * columns), columns)
    return np.concatenate([encode(column), encode(row)], axis=1)


def interpolation(old: int, new: int) -> Floats:
    """The matrix [new, old] fp32 that resamples `old` points to `new`: bicubic with a = -0.5, antialiased.

    The filter is widened when `new` is smaller, and its weights sum to one at the borders (torch's interpolate with
    mode="bicubic" and antialias=True).
    """
    if old == new:
        return np.eye(old, dtype=np.float32)
    scale = old / new
    width = max(scale, 1.0)
    centers = (np.arange(new) + 0.5) * scale
    weights = np.zeros((new, old))
    for index, center in enumerate(centers):
        first = max(int(center - 2 * width + 0.5), 0)
        points = np.arange(first, min(int(center + 2 * width + 0.5), old))
        weights[index, points] = _cubic((points - center + 0.5) / width)
    matrix: Floats = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel with a = -0.5."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    kernel: NDArray[np.float64] = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return kernel


def interpolated_positions(table: Floats, rows: int, columns: int) -> Floats:
    """The learned positions [grid, grid, features] for a grid of rows x columns patches: [rows * columns, features]."""
    grid = len(table)
    wide = np.einsum("co,rof->rcf", interpolation(grid, columns), table, optimize=True)
    positions: Floats = np.einsum("ro,ocf->rcf", interpolation(grid, rows), wide, optimize=True)
    return positions.reshape(rows * columns, -1)


def tower_tensors(spec: VisionSpec, prefix: str = "vpm") -> dict[str, TensorRef]:
    """The tensors of the tower by role, with timm's names."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    patch = (hidden, 3, spec.patch_size, spec.patch_size)
    tensors = {
        "patch.weight": TensorRef(f"{prefix}.patch_embed.proj.weight", patch),
        "patch.bias": TensorRef(f"{prefix}.patch_embed.proj.bias", (hidden,)),
        "positions": TensorRef(f"{prefix}.pos_embed", (1, spec.position_grid**2, hidden)),
        "norm.weight": TensorRef(f"{prefix}.norm.weight", (hidden,)),
        "norm.bias": TensorRef(f"{prefix}.norm.bias", (hidden,)),
    }
    for index in range(spec.num_hidden_layers):
        block, role = f"{prefix}.blocks.{index}", f"blocks.{index}"
        for norm in ("norm1", "norm2"):
            tensors[f"{role}.{norm}.weight"] = TensorRef(f"{block}.{norm}.weight", (hidden,))
            tensors[f"{role}.{norm}.bias"] = TensorRef(f"{block}.{norm}.bias", (hidden,))
        tensors |= _stacked(f"{role}.", f"{block}.attn.qkv.weight", f"{block}.attn.qkv.bias", hidden)
        linears = {"o": ("attn.proj", (hidden, hidden)), "up": ("mlp.fc1", (inner, hidden)),
                   "down": ("mlp.fc2", (hidden, inner))}  # fmt: skip
        for name, (linear, shape) in linears.items():
            tensors[f"{role}.{name}.weight"] = TensorRef(f"{block}.{linear}.weight", shape)
            tensors[f"{role}.{name}.bias"] = TensorRef(f"{block}.{linear}.bias", shape[:1])
    return tensors


def resampler_tensors(spec: VisionSpec, prefix: str = "resampler") -> dict[str, TensorRef]:
    """The tensors of the resampler by role."""
    size = spec.output_size
    norms = {f"{norm}.{kind}": TensorRef(f"{prefix}.{norm}.{kind}", (size,))
             for norm in ("ln_q", "ln_kv", "ln_post") for kind in ("weight", "bias")}  # fmt: skip
    return {
        "query": TensorRef(f"{prefix}.query", (spec.queries, size)),
        "query_positions": TensorRef(f"{prefix}.pos_embed", (spec.queries, size)),
        "kv.weight": TensorRef(f"{prefix}.kv_proj.weight", (size, spec.hidden_size)),
        **norms,
        **_stacked("", f"{prefix}.attn.in_proj_weight", f"{prefix}.attn.in_proj_bias", size),
        "o.weight": TensorRef(f"{prefix}.attn.out_proj.weight", (size, size)),
        "o.bias": TensorRef(f"{prefix}.attn.out_proj.bias", (size,)),
        "projection": TensorRef(f"{prefix}.proj", (size, size)),
    }


def _stacked(prefix: str, weight: str, bias: str, size: int) -> dict[str, TensorRef]:
    """q, k and v as the three slices of a stacked linear layer."""
    tensors = {}
    for index, name in enumerate("qkv"):
        rows = (index * size, (index + 1) * size)
        tensors[f"{prefix}{name}.weight"] = TensorRef(weight, (3 * size, size), rows)
        tensors[f"{prefix}{name}.bias"] = TensorRef(bias, (3 * size,), rows)
    return tensors
