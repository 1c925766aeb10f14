"""Check level 1: every compiled layer against the oracle, on the activations of a real prompt.

Both get the same input: the oracle's activations, rounded to the file's dtype between layers. So the error of a layer
does not include the errors of earlier layers. All tokens but the last go through prefill, the last one through decode
with the cache from prefill. In a decode-only build, all tokens go through decode.
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
    """Token ids of the prompt, as the user message of the chat template if `chat`, else unchanged."""
    return tokenizer.encode_chat([{"role": "user", "content": prompt}]) if chat else tokenizer.encode(prompt)


Array = NDArray[Any]


@dataclass(frozen=True)
class OutputError:
    """A layer's output compared with the oracle's, token by token.

    `cosine` is the minimum over tokens. `delta_l2` is the relative L2 error of what the layer adds to the residual
    stream, the median over tokens: activations of the first tokens can be so large that rounding them to bf16 is a
    larger error than what the layer adds. `max_abs` is the maximum absolute error.
    """

    cosine: float
    delta_l2: float
    max_abs: float

    def passes(self, thresholds: Thresholds) -> bool:
        return self.cosine >= thresholds.min_layer_cosine and self.delta_l2 <= thresholds.max_delta_l2


@dataclass(frozen=True)
class LayerCheck:
    """The errors of one layer; `prefill` is None in a decode-only build."""

    layer: int
    decode: OutputError
    prefill: OutputError | None

    def passes(self, thresholds: Thresholds) -> bool:
        return all(part.passes(thresholds) for part in (self.decode, self.prefill) if part)


def check_layers(bundle: Bundle, oracle: Oracle, ids: Sequence[int]) -> Iterator[LayerCheck]:
    """Checks the layers in order, one in memory at a time. Raises AxzooError for a prompt of fewer than two tokens."""
    if len(ids) < 2:
        raise AxzooError(f"level 1 needs a prompt of at least 2 tokens, but this one has {len(ids)}: use a longer one")
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
            decode=output_error(x[prefilled:], got[prefilled:], want[prefilled:]),
            prefill=output_error(x[:prefilled], got[:prefilled], want[:prefilled]) if prefilled else None,
        )


def _run_layer(session: InferenceSession, rows: Array) -> Array:
    """rows [n, hidden_size] -> the layer's outputs [n, hidden_size] fp32."""
    outputs: list[Array] = []
    decoder = Decoder([session])
    decoder.prefill(rows[:-1], lambda _layer, _position, hidden: outputs.append(hidden))
    decoder.decode(rows[-1:], lambda _layer, _position, hidden: outputs.append(hidden))
    return np.concatenate(outputs).astype(np.float32)


def output_error(given: Array, got: Array, want: Array) -> OutputError:
    """The error of a layer's output; given, got, want [tokens, hidden_size] are its input, its output, the oracle's."""
    tokens = list(zip(given, got, want, strict=True))
    deltas = [relative_l2(g - x, w - x) for x, g, w in tokens]
    return OutputError(
        cosine=min(cosine(g, w) for _, g, w in tokens),
        delta_l2=float(np.percentile(deltas, 50, method="lower")),  # the smaller one of two tokens
        max_abs=max_abs(got, want),
    )
