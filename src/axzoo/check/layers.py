"""Level 1: every layer's file against the oracle, on the activations of a real prompt.

File and oracle are given the same input: the oracle's activations, rounded between layers to the file's dtype. So a
layer's error is its own, and not what the layers before it made. All tokens but the last go through prefill, the last
through decode behind the cache that prefill left. Of a decode-only build all tokens go through decode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes  # noqa: F401 - teaches numpy the name bfloat16
import numpy as np
import torch
from numpy.typing import NDArray

from axzoo.check.metrics import cosine, max_abs, relative_l2
from axzoo.core.errors import AxzooError
from axzoo.model.oracle import Oracle
from axzoo.runtime.bundle_folder import Bundle
from axzoo.runtime.decoder import Decoder
from axzoo.runtime.engine import InferenceSession
from axzoo.tokenizer.local import LocalTokenizer
from axzoo.weights.formats import Thresholds


def prompt_ids(tokenizer: LocalTokenizer, prompt: str, chat: bool) -> list[int]:
    """The prompt as the user's message of the chat template, or as it stands."""
    return tokenizer.encode_chat([{"role": "user", "content": prompt}]) if chat else tokenizer.encode(prompt)


Array = NDArray[Any]


@dataclass(frozen=True)
class Closeness:
    """A layer's output against the oracle's, token by token.

    `cosine` is the worst token's. `delta_l2` is the relative L2 error of what the layer added to the residual stream,
    the median token's: the first tokens may carry activations so large that rounding them to bf16 alone outweighs what
    a layer adds. `max_abs` is over everything.
    """

    cosine: float
    delta_l2: float
    max_abs: float

    def passes(self, thresholds: Thresholds) -> bool:
        return self.cosine >= thresholds.min_layer_cosine and self.delta_l2 <= thresholds.max_delta_l2


@dataclass(frozen=True)
class LayerCheck:
    """One layer's verdict-bearing numbers; a decode-only build has no `prefill`."""

    layer: int
    decode: Closeness
    prefill: Closeness | None

    def passes(self, thresholds: Thresholds) -> bool:
        return all(part.passes(thresholds) for part in (self.decode, self.prefill) if part)


def check_layers(bundle: Bundle, oracle: Oracle, ids: Sequence[int]) -> Iterator[LayerCheck]:
    """Checks the layers in order, holding one at a time. Raises AxzooError for a prompt of fewer than two tokens."""
    if len(ids) < 2:
        raise AxzooError(f"level 1 needs a prompt of at least 2 tokens, not {len(ids)}: use a longer one")
    state = oracle.embed(ids)
    for index, path in enumerate(bundle.layers):
        session = InferenceSession(path)
        given = state.numpy().astype(session.get_inputs()[0].dtype)
        rounded = torch.from_numpy(given.astype(np.float32))
        state, _ = oracle.layer(index, rounded)
        got, want, x = _run_layer(session, given), state.numpy(), rounded.numpy()
        prefilled = len(ids) - 1 if session.num_shape_groups > 1 else 0
        yield LayerCheck(
            layer=index,
            decode=closeness(x[prefilled:], got[prefilled:], want[prefilled:]),
            prefill=closeness(x[:prefilled], got[:prefilled], want[:prefilled]) if prefilled else None,
        )


def _run_layer(session: InferenceSession, rows: Array) -> Array:
    """rows [n, hidden_size] -> the layer's outputs [n, hidden_size] fp32."""
    outputs: list[Array] = []
    decoder = Decoder([session])
    decoder.prefill(rows[:-1], lambda _layer, _position, hidden: outputs.append(hidden))
    decoder.decode(rows[-1:], lambda _layer, _position, hidden: outputs.append(hidden))
    return np.concatenate(outputs).astype(np.float32)


def closeness(given: Array, got: Array, want: Array) -> Closeness:
    """given, got, want [tokens, hidden_size]: a layer's input, its output and the oracle's."""
    tokens = list(zip(given, got, want, strict=True))
    deltas = [relative_l2(g - x, w - x) for x, g, w in tokens]
    return Closeness(
        cosine=min(cosine(g, w) for _, g, w in tokens),
        delta_l2=float(np.percentile(deltas, 50, method="lower")),  # of two tokens the better one
        max_abs=max_abs(got, want),
    )
