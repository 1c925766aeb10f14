"""A bundle in memory: token ids in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from axzoo.core.errors import AxzooError
from axzoo.runtime.buffers import Embedding
from axzoo.runtime.bundle_folder import ModelFiles, open_bundle
from axzoo.runtime.decoder import Decoder, HiddenHook, Session
from axzoo.runtime.engine import FileMode, InferenceSession, NodeArg
from axzoo.runtime.geometry import Geometry, require_same_state


class SessionOnDemand:
    """A session of the file `path`, loaded anew for every run. Raises AxzooError as InferenceSession does."""

    def __init__(self, path: Path, mode: FileMode = "exact") -> None:
        self._path = path
        self._mode = mode
        session = InferenceSession(path, mode=mode)
        groups = range(session.num_shape_groups)
        self._inputs = [session.get_inputs(group) for group in groups]
        self._outputs = [session.get_outputs(group) for group in groups]

    @property
    def num_shape_groups(self) -> int:
        return len(self._inputs)

    def get_inputs(self, shape_group: int = 0) -> list[NodeArg]:
        return self._inputs[shape_group]

    def get_outputs(self, shape_group: int = 0) -> list[NodeArg]:
        return self._outputs[shape_group]

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, NDArray[Any]],
        run_options: object = None,
        shape_group: int = 0,
    ) -> list[NDArray[Any]]:
        return InferenceSession(self._path, mode=self._mode).run(output_names, input_feed, run_options, shape_group)


Outputs = Mapping[str, NDArray[Any]]
"""What the post layer gives of a call's last token: "output" [1, 1, V], or "indices" and "prob" [1, 1, k]."""


class Network(Protocol):
    """Decoder layers with their caches, and the post layer. Its methods are Decoder's, but for what they give."""

    @property
    def geometry(self) -> Geometry: ...
    @property
    def used(self) -> int: ...
    @property
    def gives_topk(self) -> bool: ...
    def rewind(self, length: int) -> None: ...
    def prefill(self, rows: NDArray[Any], on_hidden: HiddenHook | None = None) -> Outputs: ...
    def decode(self, row: NDArray[Any], on_hidden: HiddenHook | None = None) -> Outputs: ...
    def post(self, hidden: NDArray[Any]) -> Outputs: ...


class Layered:
    """A call for each layer, and one for the post layer."""

    def __init__(self, decoder: Decoder, post: Session) -> None:
        self._decoder = decoder
        self._post = post
        names = {tensor.name for tensor in post.get_outputs()}
        self.gives_topk = "indices" in names
        self._wanted = ["indices", "prob"] if self.gives_topk else ["output"]

    @property
    def geometry(self) -> Geometry:
        return self._decoder.geometry

    @property
    def used(self) -> int:
        return self._decoder.used

    def rewind(self, length: int) -> None:
        self._decoder.rewind(length)

    def prefill(self, rows: NDArray[Any], on_hidden: HiddenHook | None = None) -> Outputs:
        return self.post(self._decoder.prefill(rows, on_hidden))

    def decode(self, row: NDArray[Any], on_hidden: HiddenHook | None = None) -> Outputs:
        return self.post(self._decoder.decode(row, on_hidden))

    def post(self, hidden: NDArray[Any]) -> Outputs:
        """The post layer alone: one token's hidden state [1, 1, H]."""
        return dict(zip(self._wanted, self._post.run(self._wanted, {"input": hidden}), strict=True))


Mode = Literal["exact", "fast", "fast-prompts"]
"""The engine's modes, and fast mode with the weights in memory a second time, to read prompts with."""


class Model:
    """Embedding and network, with a context that grows by `prefill` and `decode`.

    `tokens` are the ids in the context.
    """

    def __init__(self, embedding: Embedding, network: Network) -> None:
        self._embedding = embedding
        self._network = network
        self.geometry = network.geometry
        self._vocab_size = embedding.vocab_size
        self.gives_topk = network.gives_topk
        self.tokens: tuple[int, ...] = ()

    @property
    def used(self) -> int:
        """Tokens in the context."""
        return self._network.used

    @property
    def is_full(self) -> bool:
        """Whether the context has no room for another token."""
        return self.used >= self.geometry.max_token_len

    def rewind(self, length: int) -> None:
        """Forgets all but the first `length` tokens of the context; after an exception ended `prefill` or `decode`
        midway, this puts the context in order."""
        self.tokens = self.tokens[:length]
        self._network.rewind(len(self.tokens))

    def reset(self) -> None:
        """Forgets the context."""
        self.rewind(0)

    def prefill(self, ids: Sequence[int], on_hidden: HiddenHook | None = None) -> NDArray[np.float32]:
        """Appends a prompt to the context; returns the logits [V] of the token after it.

        Raises AxzooError when the prompt is empty, does not fit, or holds an id the embedding lacks.
        """
        outputs = self._network.prefill(self._embedding.rows(ids), on_hidden)
        self.tokens += tuple(ids)
        return self._logits(outputs)

    def decode(self, token_id: int, on_hidden: HiddenHook | None = None) -> NDArray[np.float32]:
        """Appends one token to the context; returns the logits [V] of the one after it.

        Raises AxzooError when the context is full or the embedding lacks the id.
        """
        outputs = self._network.decode(self._embedding.rows([token_id]), on_hidden)
        self.tokens += (token_id,)
        return self._logits(outputs)

    def logits(self, hidden: NDArray[Any]) -> NDArray[np.float32]:
        """The post layer alone: one token's hidden state [1, 1, H] -> logits [V]. Raises AxzooError in fast mode."""
        return self._logits(self._network.post(hidden))

    def _logits(self, outputs: Outputs) -> NDArray[np.float32]:
        """From a post layer that gives the likeliest tokens only: their log probabilities, and -inf for all others.

        Raises AxzooError when one of them is no token of the embedding.
        """
        if not self.gives_topk:
            return outputs["output"].reshape(-1).astype(np.float32)
        indices = outputs["indices"].reshape(-1)
        if not 0 <= indices.min() <= indices.max() < self._vocab_size:
            raise AxzooError("the post layer chose a token that the embedding lacks: build the bundle again")
        sparse = np.full(self._vocab_size, -np.inf, np.float32)
        with np.errstate(divide="ignore"):  # so unlikely that fp32 says 0
            sparse[indices] = np.log(outputs["prob"].reshape(-1))
        return sparse


def load_model(folder: Path, mode: Mode = "exact", on_step: Callable[[], None] = lambda: None) -> Model:
    """Loads a bundle. `on_step` is called after the embedding, each layer and the post layer: layers + 2 times.

    Raises AxzooError when the bundle is missing, incomplete, or its files do not belong together.
    """
    return load_files(open_bundle(folder), mode, on_step)


def load_files(
    files: ModelFiles,
    mode: Mode = "exact",
    on_step: Callable[[], None] = lambda: None,
    mapped_embedding: bool = True,
    layers_on_demand: bool = False,
) -> Model:
    """Loads a model's files; `layers_on_demand` keeps no layer in memory, which is slow.

    Raises AxzooError when a file is missing or damaged, or they do not belong together.
    """
    embedding = Embedding(files.embedding, files.vocab_size, files.hidden_size, mapped_embedding)
    on_step()
    network = _load_network(files, mode, on_step, layers_on_demand)
    if network.geometry.hidden_size != files.hidden_size:
        raise AxzooError(
            f"{files.layers[0]} takes a hidden state of {network.geometry.hidden_size}, but the embedding has rows of "
            f"{files.hidden_size}: build the bundle again"
        )
    return Model(embedding, network)


def _load_network(files: ModelFiles, mode: Mode, on_step: Callable[[], None], layers_on_demand: bool) -> Network:
    file_mode: FileMode = "exact" if mode == "exact" else "fast"
    if file_mode == "fast" and not layers_on_demand:
        from axzoo.runtime.fast.network import FusedNetwork  # imports onnx, which exact mode does without

        return FusedNetwork(files.layers, files.post, on_step, prompts_apart=mode == "fast-prompts")
    layers: list[Session] = []
    for path in files.layers:
        layers.append(SessionOnDemand(path, file_mode) if layers_on_demand else InferenceSession(path, mode=file_mode))
        on_step()
    decoder = Decoder(layers)
    post = InferenceSession(files.post, mode=file_mode)
    require_same_state(files.post, post.get_inputs(), decoder.geometry)
    on_step()
    return Layered(decoder, post)
