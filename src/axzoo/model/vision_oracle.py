"""The fp32 oracle of the vision tower and its resampler, in torch. It shares the spec with the graph, not the code."""

from __future__ import annotations

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from axzoo.model.oracle import Weights, project
from axzoo.model.slices import GRID_LIMIT
from axzoo.model.spec import VisionSpec
from axzoo.model.vision_positions import interpolated_positions, sincos_positions


def patches(spec: VisionSpec, weights: Weights, image: Tensor) -> Tensor:
    """An RGB image uint8 [height, width, 3] -> patch embeddings with positions [patches, hidden_size]."""
    pixels = (image.float() / 255 - 0.5) / 0.5
    rows = F.conv2d(pixels.permute(2, 0, 1)[None], weights["patch.weight"], weights["patch.bias"], spec.patch_size)
    side = spec.position_grid
    table = weights["positions"].reshape(side, side, -1).numpy()
    positions = interpolated_positions(table, *spec.grid(*image.shape[:2]))
    return rows[0].flatten(1).T + torch.from_numpy(positions)


def block(spec: VisionSpec, weights: Weights, index: int, x: Tensor) -> Tensor:
    """One block of the tower on x [patches, hidden_size]; same shape."""
    role = f"blocks.{index}"
    normed = _norm(spec, weights, f"{role}.norm1", x)
    q, k, v = (project(weights, f"{role}.{name}", normed) for name in "qkv")
    x = x + project(weights, f"{role}.o", _attention(q, k, v, spec.num_attention_heads))
    normed = _norm(spec, weights, f"{role}.norm2", x)
    return x + project(weights, f"{role}.down", F.gelu(project(weights, f"{role}.up", normed)))


def tower(spec: VisionSpec, weights: Weights, image: Tensor) -> Tensor:
    """An RGB image uint8 [height, width, 3] -> [patches, hidden_size]."""
    x = patches(spec, weights, image)
    for index in range(spec.num_hidden_layers):
        x = block(spec, weights, index, x)
    return tower_output(spec, weights, x)


def tower_output(spec: VisionSpec, weights: Weights, x: Tensor) -> Tensor:
    """The norm after the last block, on x [patches, hidden_size]; same shape."""
    return _norm(spec, weights, "norm", x)


def resampler(spec: VisionSpec, weights: Weights, x: Tensor, position_ids: NDArray) -> Tensor:  # type: ignore[type-arg]
    """The tower's output [patches, hidden_size] and its position ids [patches] -> [queries, output_size]."""
    table = torch.from_numpy(sincos_positions(spec.output_size, GRID_LIMIT, GRID_LIMIT))
    values = _norm(spec, weights, "ln_kv", project(weights, "kv", x))
    keys = values + table[torch.from_numpy(position_ids).long()]
    queries = _norm(spec, weights, "ln_q", weights["query"]) + weights["query_positions"]
    q, k, v = (project(weights, name, rows) for name, rows in zip("qkv", (queries, keys, values), strict=True))
    x = project(weights, "o", _attention(q, k, v, spec.resampler_heads))
    return _norm(spec, weights, "ln_post", x) @ weights["projection"]


def _norm(spec: VisionSpec, weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], spec.eps)


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of q [n, size] over k, v [m, size], split into `heads`; without a mask."""
    q, k, v = (rows.view(len(rows), heads, -1).transpose(0, 1) for rows in (q, k, v))
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    context: Tensor = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
    return context
