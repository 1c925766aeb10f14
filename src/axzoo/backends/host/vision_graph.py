"""Compiles a vision tower and its resampler: an RGB image in, the embedding rows that replace it out.

The graph accepts any image whose sides are multiples of the patch size, up to GRID_LIMIT patches; the shape groups say
for which sizes the file was built.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.backends.host.builder import GraphBuilder
from axzoo.backends.host.compiler import Compiled, RowReader
from axzoo.backends.host.container import serialize, value_info
from axzoo.backends.host.operators import linear
from axzoo.model.slices import GRID_LIMIT
from axzoo.model.spec import VisionSpec
from axzoo.model.vision_positions import interpolation, sincos_positions
from axzoo.parts.groups import ShapeGroup
from axzoo.parts.image_groups import vision_groups
from axzoo.weights.encoding import vision_format
from axzoo.weights.recipe import Recipe
from axzoo.weights.stored import StoredWeight, store_weight

Floats = NDArray[np.float32]


class _Weights:
    """Reads tensors by role and adds them to the graph: matrices in the recipe's weight type, the rest in fp32."""

    def __init__(self, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], read: RowReader) -> None:
        self._recipe, self._shapes, self._read = recipe, shapes, read
        self.errors: dict[str, float] = {}

    def values(self, role: str) -> Floats:
        """The whole tensor in fp32."""
        return np.concatenate(list(self._read(role))).astype(np.float32)

    def stored(self, role: str, matrix: Floats | None = None) -> StoredWeight:
        """A matrix [out_features, in_features], by default the tensor `role`.weight, in the recipe's weight type."""
        if matrix is None:
            rows, columns = self._shapes[f"{role}.weight"]
            blocks: Iterable[NDArray[Any]] = self._read(f"{role}.weight")
        else:
            (rows, columns), blocks = matrix.shape, [matrix]
        weight = store_weight(role, blocks, (rows, columns), vision_format(self._recipe, columns))
        self.errors[role] = weight.error
        return weight

    def linear(self, g: GraphBuilder, x: str, role: str, matrix: Floats | None = None) -> str:
        """x [..., in_features] fp32 -> [..., out_features] fp32."""
        bias = f"{role}.bias"
        vectors = {bias: self.values(bias)} if bias in self._shapes else {}
        return linear(g, x, {role: self.stored(role, matrix)}, vectors, role, "vision")

    def norm(self, g: GraphBuilder, x: str, role: str, eps: float) -> str:
        """Layer norm of x [..., features]; same shape."""
        scale, bias = (g.constant(f"{role}.{kind}", self.values(f"{role}.{kind}")) for kind in ("weight", "bias"))
        return g.op("LayerNormalization", [x, scale, bias], f"{role}/LayerNormalization", axis=-1, epsilon=eps)


def compile_vision(
    kind: str,
    spec: VisionSpec,
    stages: tuple[str, ...],
    recipe: Recipe,
    shapes: Mapping[str, tuple[int, ...]],
    read: RowReader,
) -> Compiled:
    """Compiles the `stages` of the vision model ("tower", "resampler" or both) into one file.

    `kind` is the part kind's name. `shapes` and `read` provide the tensors by role. Blocks are read one
    after the other.
    """
    weights = _Weights(recipe, shapes, read)
    groups = vision_groups(spec, stages, recipe)
    g = GraphBuilder()
    x = _tower(g, spec, weights) if "tower" in stages else _cast(g, "input", groups)
    if "resampler" in stages:
        x = _resampler(g, spec, weights, x)
    g.cast(x, recipe.hidden_state_type, "output/Cast", output="output")
    return _compiled(kind, spec, g, groups, recipe, weights.errors)


def _cast(g: GraphBuilder, value: str, groups: tuple[ShapeGroup, ...]) -> str:
    return value if groups[0].inputs[0].dtype == "fp32" else g.cast(value, "fp32", f"{value}/Cast")


def _compiled(
    kind: str,
    spec: VisionSpec,
    g: GraphBuilder,
    groups: tuple[ShapeGroup, ...],
    recipe: Recipe,
    errors: dict[str, float],
) -> Compiled:
    symbols: dict[tuple[str, int], list[int | str]] = {
        ("input", 4): [1, "height", "width", 3],
        ("input", 3): [1, "patches", spec.hidden_size],
        ("pos_embed_ids", 1): ["patches"],
        ("output", 3): list(groups[0].outputs[0].shape),
    }
    if groups[0].outputs[0].shape[1] != spec.queries or groups[0].outputs[0].shape[2] != spec.output_size:
        symbols["output", 3] = [1, "patches", spec.hidden_size]
    infos = [[value_info(t, symbols[t.name, len(t.shape)]) for t in ts] for ts in (groups[0].inputs, groups[0].outputs)]
    about = {
        "weight_type": recipe.weight_type,
        "hidden_state_type": recipe.hidden_state_type,
        "weight_errors": errors,
    }
    return Compiled(serialize(g.graph(kind, *infos), kind, groups, about), about)


def _tower(g: GraphBuilder, spec: VisionSpec, weights: _Weights) -> str:
    """The uint8 image `input` [1, height, width, 3] -> [1, patches, hidden_size] fp32."""
    x = _patches(g, spec, weights)
    x = g.op("Add", [x, _positions(g, spec, weights)], "patch/positions/Add")
    for index in range(spec.num_hidden_layers):
        x = _block(g, spec, weights, f"blocks.{index}", x)
    return weights.norm(g, x, "norm", spec.eps)


def _patches(g: GraphBuilder, spec: VisionSpec, weights: _Weights) -> str:
    """Patch embeddings [1, patches, hidden_size]. Pixels are scaled from 0..255 to -1..1."""
    x = g.cast("input", "fp32", "input/Cast")
    x = g.op("Mul", [x, g.constant("pixel.scale", np.array(1 / 127.5, np.float32))], "pixel/Mul")
    x = g.op("Sub", [x, g.constant("pixel.center", np.array(1, np.float32))], "pixel/Sub")
    x = g.op("Transpose", [x], "pixel/channels/Transpose", perm=[0, 3, 1, 2])
    x = g.op("SpaceToDepth", [x], "patch/SpaceToDepth", blocksize=spec.patch_size)
    x = g.op("Transpose", [x], "patch/Transpose", perm=[0, 2, 3, 1])
    shape = g.constant("patch.shape", np.array([1, -1, spec.patch_values], np.int64))
    x = g.op("Reshape", [x, shape], "patch/Reshape")
    kernel = weights.values("patch.weight")  # SpaceToDepth orders a patch's values by row, column, channel
    return weights.linear(g, x, "patch", kernel.transpose(0, 2, 3, 1).reshape(len(kernel), -1))


def _positions(g: GraphBuilder, spec: VisionSpec, weights: _Weights) -> str:
    """The learned positions for the image's grid [1, patches, hidden_size].

    Interpolation is a product with one matrix per side. The matrices of all sides are in the file.
    """
    side, hidden = spec.position_grid, spec.hidden_size
    matrices = np.zeros((GRID_LIMIT + 1, GRID_LIMIT, side), np.float32)
    for new in range(1, GRID_LIMIT + 1):
        matrices[new, :new] = interpolation(side, new)
    table = g.constant("positions.matrices", matrices)
    patch = g.constant("positions.patch", np.array([spec.patch_size], np.int64))
    zero, axis = (g.constant(f"positions.{n}", np.array([i], np.int64)) for i, n in enumerate(("zero", "axis")))

    def matrix(name: str, dimension: int) -> str:
        length = g.op("Shape", ["input"], f"positions/{name}/Shape", start=dimension, end=dimension + 1)
        count = g.op("Div", [length, patch], f"positions/{name}/Div")
        rows = g.op("Gather", [table, count], f"positions/{name}/Gather", axis=0)
        return g.op("Slice", [rows, zero, count, axis], f"positions/{name}/Slice")

    learned = g.constant("positions", weights.values("positions").reshape(side, side * hidden))
    x = g.op("MatMul", [matrix("rows", 1), learned], "positions/rows/MatMul")
    split = g.constant("positions.split", np.array([-1, side, hidden], np.int64))
    x = g.op("Reshape", [x, split], "positions/split/Reshape")
    x = g.op("MatMul", [matrix("columns", 2), x], "positions/columns/MatMul")
    return g.op("Reshape", [x, g.constant("positions.shape", np.array([1, -1, hidden], np.int64))], "positions/Reshape")


def _block(g: GraphBuilder, spec: VisionSpec, weights: _Weights, role: str, x: str) -> str:
    """One transformer block on x [1, patches, hidden_size]; same shape."""
    normed = weights.norm(g, x, f"{role}.norm1", spec.eps)
    q, k, v = (weights.linear(g, normed, f"{role}.{name}") for name in "qkv")
    attended = _attention(g, f"{role}/Attention", (q, k, v), spec.num_attention_heads)
    x = g.op("Add", [x, weights.linear(g, attended, f"{role}.o")], f"{role}/attention/Add")
    normed = weights.norm(g, x, f"{role}.norm2", spec.eps)
    inner = g.op("Gelu", [weights.linear(g, normed, f"{role}.up")], f"{role}/Gelu")
    return g.op("Add", [x, weights.linear(g, inner, f"{role}.down")], f"{role}/mlp/Add")


def _resampler(g: GraphBuilder, spec: VisionSpec, weights: _Weights, x: str) -> str:
    """The tower's output [1, patches, hidden_size] and the input `pos_embed_ids` -> [1, queries, output_size] fp32.

    The queries do not depend on the image, so their part up to q_proj's input is computed here.
    """
    values = weights.norm(g, weights.linear(g, x, "kv"), "ln_kv", spec.eps)
    table = g.constant("resampler.positions", sincos_positions(spec.output_size, GRID_LIMIT, GRID_LIMIT))
    positions = g.op("Gather", [table, "pos_embed_ids"], "resampler/positions/Gather", axis=0)
    keys = g.op("Add", [values, positions], "resampler/positions/Add")
    query = g.constant("query", weights.values("query")[None])
    query = weights.norm(g, query, "ln_q", spec.eps)
    query = g.op("Add", [query, g.constant("query.positions", weights.values("query_positions"))], "query/Add")
    projected = tuple(weights.linear(g, rows, name) for name, rows in zip("qkv", (query, keys, values), strict=True))
    x = weights.linear(g, _attention(g, "resampler/Attention", projected, spec.resampler_heads), "o")
    x = weights.norm(g, x, "ln_post", spec.eps)
    return weights.linear(g, x, "projection", weights.values("projection").T)


def _attention(g: GraphBuilder, name: str, qkv: tuple[str, ...], heads: int) -> str:
    return g.op("Attention", list(qkv), name, q_num_heads=heads, kv_num_heads=heads)
