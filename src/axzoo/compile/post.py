"""The post layer, final norm and lm_head -> the bytes of its .axmodel."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from axzoo.axmodel import post_groups, serialize, value_info
from axzoo.compile.result import Compiled, RowReader
from axzoo.errors import AxzooError
from axzoo.graph.builder import GraphBuilder
from axzoo.graph.linear import linear
from axzoo.graph.norm import norm
from axzoo.graph.scale import scaled
from axzoo.graph.topk import likeliest
from axzoo.quantize.formats import post_format
from axzoo.quantize.weights import store_weight
from axzoo.recipe import Recipe
from axzoo.spec import PostSpec


def compile_post(spec: PostSpec, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], read: RowReader) -> Compiled:
    """Builds the post layer from "lm_head.weight" [vocab_size, hidden_size] and the vectors of norm and bias.

    Raises AxzooError when the recipe asks for more tokens than there are.
    """
    rows, columns = shapes["lm_head.weight"]
    if recipe.post_topk > rows:
        raise AxzooError(f"post_topk {recipe.post_topk} is more than the {rows} tokens of the vocabulary: lower it")
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
        likeliest(g, logits, recipe.post_topk)
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
