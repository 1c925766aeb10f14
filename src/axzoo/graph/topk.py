"""The likeliest tokens, for a host that would rather not read a whole vocabulary's logits."""

from __future__ import annotations

import numpy as np

from axzoo.graph.builder import GraphBuilder


def likeliest(g: GraphBuilder, logits: str, k: int) -> None:
    """logits [1, 1, vocab_size] fp32 -> the graph's outputs "indices" [1, 1, k] int32, the likeliest first, and "prob"
    [1, 1, k] fp32, their probabilities among the whole vocabulary."""
    count = g.constant("topk.k", np.array([k], np.int64))
    g.node("TopK", [logits, count], ["topk/values", "topk/indices"], "topk/TopK", axis=-1)
    probabilities = g.op("Softmax", [logits], "topk/Softmax", axis=-1)
    g.op("GatherElements", [probabilities, "topk/indices"], "topk/GatherElements", output="prob", axis=2)
    g.cast("topk/indices", "int32", "indices/Cast", output="indices")
