"""A bundle in memory: token ids in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.engine import InferenceSession, Mode
from axzoo.errors import AxzooError
from axzoo.runtime.bundle import open_bundle
from axzoo.runtime.decoder import Decoder, HiddenHook, Session
from axzoo.runtime.embedding import Embedding


class Model:
    """Embedding, decoder layers and post layer, with a context that grows by `prefill` and `decode`."""

    def __init__(self, embedding: Embedding, decoder: Decoder, post: Session) -> None:
        self._embedding = embedding
        self._decoder = decoder
        self._post = post
        self.geometry = decoder.geometry
        self._vocab_size = embedding.vocab_size
        self._gives_topk = any(tensor.name == "indices" for tensor in post.get_outputs())

    @property
    def used(self) -> int:
        """Tokens in the context."""
        return self._decoder.used

    @property
    def is_full(self) -> bool:
        """Whether the context has no room for another token."""
        return self.used >= self.geometry.max_token_len

    def reset(self) -> None:
        """Forgets the context."""
        self._decoder.reset()

    def prefill(self, ids: Sequence[int], on_hidden: HiddenHook | None = None) -> NDArray[np.float32]:
        """Appends a prompt to the context; returns the logits [V] of the token after it.

        Raises AxzooError when the prompt is empty, does not fit, or holds an id the embedding lacks.
        """
        return self.logits(self._decoder.prefill(self._embedding.rows(ids), on_hidden))

    def decode(self, token_id: int, on_hidden: HiddenHook | None = None) -> NDArray[np.float32]:
        """Appends one token to the context; returns the logits [V] of the one after it.

        Raises AxzooError when the context is full or the embedding lacks the id.
        """
        return self.logits(self._decoder.decode(self._embedding.rows([token_id]), on_hidden))

    def logits(self, hidden: NDArray[Any]) -> NDArray[np.float32]:
        """The post layer: one token's hidden state [1, 1, H] -> logits [V].

        From a post layer that gives the likeliest tokens only: their log probabilities, and -inf for all others.
        """
        if not self._gives_topk:
            (logits,) = self._post.run(["output"], {"input": hidden})
            return logits.reshape(-1).astype(np.float32)
        indices, prob = self._post.run(["indices", "prob"], {"input": hidden})
        sparse = np.full(self._vocab_size, -np.inf, np.float32)
        with np.errstate(divide="ignore"):  # so unlikely that fp32 says 0
            sparse[indices.reshape(-1)] = np.log(prob.reshape(-1))
        return sparse


def load_model(folder: Path, mode: Mode = "exact", on_step: Callable[[], None] = lambda: None) -> Model:
    """Loads a bundle. `on_step` is called after the embedding, each layer and the post layer: layers + 2 times.

    Raises AxzooError when the bundle is missing, incomplete, or its files do not belong together.
    """
    bundle = open_bundle(folder)
    embedding = Embedding(bundle.embedding, bundle.vocab_size, bundle.hidden_size)
    on_step()
    layers: list[Session] = []
    for path in bundle.layers:
        layers.append(InferenceSession(path, mode))
        on_step()
    decoder = Decoder(layers)
    if decoder.geometry.hidden_size != bundle.hidden_size:
        raise AxzooError(
            f"{bundle.layers[0]} takes a hidden state of {decoder.geometry.hidden_size}, but the embedding has rows of "
            f"{bundle.hidden_size}: build the bundle again"
        )
    post = InferenceSession(bundle.post, mode)
    on_step()
    return Model(embedding, decoder, post)
