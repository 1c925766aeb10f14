"""The additive attention mask."""

from __future__ import annotations

import numpy as np

from axzoo.graph.builder import GraphBuilder
from axzoo.graph.rotary import Rotary

CLOSED = -65536.0


def attention_mask(g: GraphBuilder, window: int | None, rotary: Rotary) -> str:
    """The graph's `mask` [1, n, cached + n] as fp32 [1, 1, n, cached + n]; with a window, closed outside of it too."""
    axis = g.constant("mask.axis", np.array([1], np.int64))
    mask = g.op("Unsqueeze", [g.cast("mask", "fp32", "mask/Cast"), axis], "mask/Unsqueeze")
    if window is None:
        return mask
    return g.op("Add", [mask, _window_mask(g, window, rotary)], "mask/Add")


def _window_mask(g: GraphBuilder, window: int, rotary: Rotary) -> str:
    """[n, cached + n]: closed where a key stands `window` positions or more before the query.

    Cache slot j holds position j; behind the cache stand the new tokens, at the graph's `indices`.
    """
    zero, one = g.constant("window.zero", np.array(0, np.int64)), g.constant("window.one", np.array(1, np.int64))
    cached = g.op("Shape", ["K_cache"], "window/cached/Shape", start=1, end=2)
    cached = g.op("Squeeze", [cached], "window/cached/Squeeze")
    slots = g.op("Range", [zero, cached, one], "window/slots/Range")
    first = g.constant("window.first", np.array([0], np.int64))
    last = g.constant("window.last", np.array([1], np.int64))
    new = g.op("Squeeze", [rotary.positions, first], "window/new/Squeeze")
    keys = g.op("Concat", [slots, new], "window/keys/Concat", axis=0)
    queries = g.op("Unsqueeze", [new, last], "window/queries/Unsqueeze")
    distance = g.op("Sub", [queries, keys], "window/distance/Sub")
    width = g.constant("window.width", np.array(window, np.int64))
    outside = g.op("GreaterOrEqual", [distance, width], "window/outside/GreaterOrEqual")
    closed = g.constant("window.closed", np.array(CLOSED, np.float32))
    opened = g.constant("window.open", np.array(0, np.float32))
    return g.op("Where", [outside, closed, opened], "window/Where")
