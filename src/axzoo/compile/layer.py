"""One decoder layer -> the bytes of its .axmodel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.axmodel import ShapeGroup, layer_groups, serialize, value_info
from axzoo.compile.result import Compiled, RowReader
from axzoo.errors import AxzooError
from axzoo.graph.attention import attention
from axzoo.graph.builder import GraphBuilder
from axzoo.graph.mask import attention_mask
from axzoo.graph.mlp import mlp
from axzoo.graph.norm import Vectors, norm
from axzoo.graph.rotary import rotary_inputs
from axzoo.graph.scale import scaled
from axzoo.graph.wire import Pieces
from axzoo.quantize.formats import layer_format
from axzoo.quantize.weights import StoredWeight, store_weight
from axzoo.recipe import Recipe
from axzoo.rope import reach
from axzoo.spec import LayerSpec


def compile_layer(
    spec: LayerSpec,
    recipe: Recipe,
    shapes: Mapping[str, tuple[int, ...]],
    read: RowReader,
    stored: Mapping[str, StoredWeight] | None = None,
) -> Compiled:
    """Builds the layer. `shapes` and `read` give its tensors by role ("q_proj.weight", "input_norm.weight", ...);
    `stored` gives its matrices where the recipe's rounding has made them already.

    Raises AxzooError when the recipe's lengths exceed the positions the model knows, or its weight type or group size
    does not serve a tensor.
    """
    known = reach(spec.rope, spec.max_position_embeddings)
    if recipe.positions > known:
        raise AxzooError(
            f"kv_cache_len {recipe.kv_cache_len} does not fit: it asks for {recipe.positions} positions, "
            f"and config.json gives the model {known} (max_position_embeddings, and what its rope adds)"
        )
    form = layer_format(recipe)
    weights: dict[str, StoredWeight] = {}
    vectors: dict[str, NDArray[np.float32]] = {}
    for role, shape in shapes.items():
        if len(shape) == 2:
            weight = store_weight(role, read(role), (shape[0], shape[1]), form) if stored is None else stored[role]
            weights[role.removesuffix(".weight")] = weight
        else:
            vectors[role] = np.concatenate(list(read(role))).astype(np.float32)
    groups = layer_groups(spec, recipe)
    graph = _layer_graph(spec, recipe.hidden_state_type, recipe.positions, groups, weights, vectors)
    about = _about(recipe, {name: weight.error for name, weight in weights.items()})
    return Compiled(serialize(graph, "decoder_layer", groups, about), about)


def _about(recipe: Recipe, errors: dict[str, float]) -> dict[str, Any]:
    storage = {key: getattr(recipe, key) for key in ("weight_group_size", "scale_rule", "rounding")}
    chosen = {key: value for key, value in storage.items() if value != getattr(Recipe, key)}
    kinds = {"weight_type": recipe.weight_type, "hidden_state_type": recipe.hidden_state_type}
    return {**kinds, **chosen, "weight_errors": errors}


def _layer_graph(
    spec: LayerSpec,
    state: str,
    positions: int,
    groups: tuple[ShapeGroup, ...],
    weights: Mapping[str, StoredWeight],
    vectors: Vectors,
) -> Pieces:
    g = GraphBuilder()
    rotary = rotary_inputs(g, spec, positions, "indices")
    window = spec.sliding_window if spec.sliding_window and spec.sliding_window < positions else None
    mask = attention_mask(g, window, rotary)
    x = g.cast("input", "fp32", "input/Cast") if state != "fp32" else "input"
    x = scaled(g, x, spec.input_scale, "input")
    normed = norm(g, spec.norm, x, vectors, "input_norm")
    attended = attention(g, spec, normed, rotary, mask, weights, vectors, state)
    x = g.op("Add", [x, scaled(g, attended, spec.residual_scale, "attention/residual")], "attention/residual/Add")
    if not spec.parallel:
        normed = norm(g, spec.norm, x, vectors, "mlp_norm")
    fed = mlp(g, spec, normed, weights, vectors)
    x = g.op("Add", [x, scaled(g, fed, spec.residual_scale, "mlp/residual")], "mlp/residual/Add")
    g.cast(x, state, "output/Cast", output="output")
    lengths: dict[str, list[int | str]] = {
        "K_cache": [1, "cache_len", spec.kv_size],
        "V_cache": [1, "cache_len", spec.kv_size],
        "indices": [1, "token_len"],
        "input": [1, "token_len", spec.hidden_size],
        "mask": [1, "token_len", "total_len"],
        "K_cache_out": [1, "token_len", spec.kv_size],
        "V_cache_out": [1, "token_len", spec.kv_size],
        "output": [1, "token_len", spec.hidden_size],
    }
    decode = groups[0]
    return g.graph(
        "decoder_layer",
        [value_info(tensor, lengths[tensor.name]) for tensor in decode.inputs],
        [value_info(tensor, lengths[tensor.name]) for tensor in decode.outputs],
    )
