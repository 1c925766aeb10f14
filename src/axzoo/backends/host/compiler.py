"""Compiles a part: its spec and tensors -> the bytes of its .axmodel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.backends.host.attention import attention, attention_mask, rotary_inputs
from axzoo.backends.host.builder import GraphBuilder
from axzoo.backends.host.container import Pieces, serialize, value_info
from axzoo.backends.host.operators import Vectors, linear, mlp, norm, scaled, topk
from axzoo.core.errors import AxzooError
from axzoo.model.spec import LayerSpec, PostSpec, supported_length
from axzoo.parts.groups import ShapeGroup, layer_groups, post_groups
from axzoo.weights.encoding import layer_format, post_format
from axzoo.weights.recipe import Recipe
from axzoo.weights.stored import StoredWeight, store_weight

RowReader = Callable[[str], Iterable[NDArray[Any]]]
"""Returns the tensor of a role as consecutive blocks of rows."""


@dataclass(frozen=True)
class Compiled:
    """The bytes of a file in pieces, and the description of the build that the file contains (plain JSON values).

    `about` contains the recipe's types, its weight storage options that differ from the defaults, and "weight_errors",
    the relative L2 quantization error of each weight matrix.
    """

    pieces: Pieces
    about: dict[str, Any]


def compile_layer(
    spec: LayerSpec,
    recipe: Recipe,
    shapes: Mapping[str, tuple[int, ...]],
    read: RowReader,
    stored: Mapping[str, StoredWeight] | None = None,
) -> Compiled:
    """Compiles a decoder layer. `shapes` and `read` provide its tensors by role ("q_proj.weight", "input_norm.weight",
    ...). If the matrices are already quantized, `stored` contains them.

    Raises AxzooError when the recipe's lengths exceed the model's positions, or a tensor cannot be stored with the
    recipe's weight type or group size.
    """
    supported = supported_length(spec.rope, spec.max_position_embeddings)
    if recipe.positions > supported:
        raise AxzooError(
            f"kv_cache_len {recipe.kv_cache_len} is too large: it needs {recipe.positions} positions, "
            f"and the model supports {supported} (max_position_embeddings and rope scaling of config.json)"
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
    if recipe.embedding_scale == "host":
        spec = replace(spec, input_scale=1.0)
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


def compile_post(
    spec: PostSpec,
    recipe: Recipe,
    shapes: Mapping[str, tuple[int, ...]],
    read: RowReader,
) -> Compiled:
    """Compiles the post layer from "lm_head.weight" [vocab_size, hidden_size] and the norm and bias vectors.

    Raises AxzooError when the recipe's post_topk exceeds the vocabulary.
    """
    rows, columns = shapes["lm_head.weight"]
    if recipe.post_topk > rows:
        raise AxzooError(f"post_topk {recipe.post_topk} exceeds the vocabulary of {rows} tokens: lower it")
    weight = store_weight(
        "lm_head.weight", read("lm_head.weight"), (rows, columns), post_format(recipe.post_weight_type)
    )
    vectors = {role: np.concatenate(list(read(role))).astype(np.float32) for role in shapes if role != "lm_head.weight"}
    g = GraphBuilder()
    x = g.cast("input", "fp32", "input/Cast") if recipe.hidden_state_type != "fp32" else "input"
    normed = norm(g, spec.norm, x, vectors, "norm")
    if recipe.ret_postnorm:
        g.cast(normed, recipe.hidden_state_type, "postnorm/Cast", output="postnorm")
    x = scaled(g, normed, spec.logit_scale, "logits")
    logits = linear(g, x, {"lm_head": weight}, vectors, "lm_head", "post")
    if recipe.post_topk:
        topk(g, logits, recipe.post_topk)
    else:
        g.cast(logits, recipe.hidden_state_type, "output/Cast", output="output")
    groups = post_groups(spec, recipe)
    graph = g.graph("post", [value_info(t) for t in groups[0].inputs], [value_info(t) for t in groups[0].outputs])
    about = {
        "weight_type": recipe.post_weight_type,
        "hidden_state_type": recipe.hidden_state_type,
        "weight_errors": {"lm_head": weight.error},
    }
    return Compiled(serialize(graph, "post", groups, about), about)
