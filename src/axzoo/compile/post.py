"""The post layer, final norm and lm_head -> the bytes of its .axmodel."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from axzoo.axmodel import post_groups, to_bytes, value_info
from axzoo.compile.result import Compiled, RowReader
from axzoo.graph.builder import GraphBuilder
from axzoo.graph.linear import linear
from axzoo.graph.norm import norm
from axzoo.graph.scale import scaled
from axzoo.quantize.weights import POST_RULE, store_weight
from axzoo.recipe import Recipe
from axzoo.spec import PostSpec


def compile_post(spec: PostSpec, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], read: RowReader) -> Compiled:
    """Builds the post layer from "lm_head.weight" [vocab_size, hidden_size] and the vectors of norm and bias."""
    rows, columns = shapes["lm_head.weight"]
    weight = store_weight(read("lm_head.weight"), (rows, columns), recipe.post_weight_type, POST_RULE)
    error = weight.error
    vectors = {role: np.concatenate(list(read(role))).astype(np.float32) for role in shapes if role != "lm_head.weight"}
    g = GraphBuilder()
    x = g.cast("input", "fp32", "input/Cast") if recipe.hidden_state_type != "fp32" else "input"
    x = scaled(g, norm(g, spec.norm, x, vectors, "norm"), spec.logit_scale, "logits")
    x = linear(g, x, {"lm_head": weight}, vectors, "lm_head", "post")
    g.cast(x, recipe.hidden_state_type, "output/Cast", output="output")
    del weight  # the graph holds its own copy
    groups = post_groups(spec, recipe)
    graph = g.graph("post", [value_info(t) for t in groups[0].inputs], [value_info(t) for t in groups[0].outputs])
    about = {
        "weight_type": recipe.post_weight_type,
        "hidden_state_type": recipe.hidden_state_type,
        "weight_errors": {"lm_head": error},
    }
    return Compiled(to_bytes(graph, "post", groups, about), {"lm_head": error})
