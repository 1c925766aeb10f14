"""A loaded model: token ids in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from axzoo.core.errors import AxzooError
from axzoo.runtime.buffers import Embedding, ExtraRows
from axzoo.runtime.bundle_folder import ModelFiles, open_bundle
from axzoo.runtime.decoder import Decoder, HiddenHook, LayerSession
from axzoo.runtime.engine import FileMode, InferenceSession, NodeArg
from axzoo.runtime.geometry import Geometry, require_matching_hidden_state


class SessionOnDemand:
    """A session that loads the file for every run and keeps nothing in memory. Raises as InferenceSession does."""

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
"""Post layer outputs for the last token of a call: "output" [1, 1, V], or "indices" and "prob" [1, 1, k]."""


class Network(Protocol):
    """Decoder layers with their caches, followed by the post layer.

    The methods work like those of Decoder, but return the outputs of the post layer.
    """

    @property
    def geometry(self) -> Geometry: ...
    @property
    def used(self) -> int: ...
    @property
    def has_topk(self) -> bool: ...
    def rewind(self, length: int) -> None: ...
    def prefill(self, rows: NDArray[Any], on_hidden: HiddenHook | None = None) -> Outputs: ...
    def decode(self, row: NDArray[Any], on_hidden: HiddenHook | None = None) -> Outputs: ...
    def post(self, hidden: NDArray[Any]) -> Outputs: ...


class LayerwiseNetwork:
    """Runs one session per layer, and one for the post layer."""

    def __init__(self, decoder: Decoder, post: LayerSession) -> None:
        self._decoder = decoder
        self._post = post
        names = {tensor.name for tensor in post.get_outputs()}
        self.has_topk = "indices" in names
        self._output_names = ["indices", "prob"] if self.has_topk else ["output"]

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
        """Run only the post layer, on the hidden state [1, 1, H] of one token."""
        return dict(zip(self._output_names, self._post.run(self._output_names, {"input": hidden}), strict=True))


Mode = Literal["exact", "fast", "fast-prompts"]
"""The modes of the engine, and `fast-prompts`: fast mode with a second copy of the weights for reading prompts."""


class Model:
    """Embedding and network, with a context that `prefill` and `decode` extend.

    `tokens` are the ids in the context. With `has_topk`, the post layer returns only the k most probable tokens.
    Rows that are not in the embedding, such as an image's, get ids of their own (`add_rows`).
    """

    def __init__(self, embedding: Embedding, network: Network) -> None:
        self._embedding = embedding
        self._network = network
        self.geometry = network.geometry
        self._vocab_size = embedding.vocab_size
        self.has_topk = network.has_topk
        self._rows = ExtraRows(embedding, network.geometry.max_token_len)
        self.tokens: tuple[int, ...] = ()

    @property
    def used(self) -> int:
        """Number of tokens in the context."""
        return self._network.used

    @property
    def is_full(self) -> bool:
        """Whether the context has no room for another token."""
        return self.used >= self.geometry.max_token_len

    def rewind(self, length: int) -> None:
        """Drop all but the first `length` tokens of the context.

        Call this to restore a consistent context after an exception interrupted `prefill` or `decode`.
        """
        self.tokens = self.tokens[:length]
        self._network.rewind(len(self.tokens))

    def reset(self) -> None:
        """Clear the context."""
        self.rewind(0)

    def add_rows(self, rows: NDArray[Any]) -> list[int]:
        """Return token ids for rows [n, hidden_size] to use in prompts. Equal rows get equal ids."""
        return self._rows.add(rows, self.tokens)

    def prefill(self, ids: Sequence[int], on_hidden: HiddenHook | None = None) -> NDArray[np.float32]:
        """Append a prompt to the context and return the logits [V] for the next token.

        Raises AxzooError when the prompt is empty, does not fit, or contains an id that the embedding does not have.
        """
        outputs = self._network.prefill(self._rows.rows(ids), on_hidden)
        self.tokens += tuple(ids)
        return self._logits(outputs)

    def decode(self, token_id: int, on_hidden: HiddenHook | None = None) -> NDArray[np.float32]:
        """Append one token to the context and return the logits [V] for the next token.

        Raises AxzooError when the context is full or the embedding does not have the id.
        """
        outputs = self._network.decode(self._embedding.rows([token_id]), on_hidden)
        self.tokens += (token_id,)
        return self._logits(outputs)

    def logits(self, hidden: NDArray[Any]) -> NDArray[np.float32]:
        """Run only the post layer: one token's hidden state [1, 1, H] -> logits [V]. Raises AxzooError in fast mode."""
        return self._logits(self._network.post(hidden))

    def _logits(self, outputs: Outputs) -> NDArray[np.float32]:
        """Return fp32 logits. A top-k post layer yields log probabilities, and -inf for all other tokens.

        Raises AxzooError when the post layer returns an index that the embedding does not have.
        """
        if not self.has_topk:
            return outputs["output"].reshape(-1).astype(np.float32)
        indices = outputs["indices"].reshape(-1)
        if not 0 <= indices.min() <= indices.max() < self._vocab_size:
            raise AxzooError(
                f"the post layer returned a token id outside the vocabulary of {self._vocab_size}: "
                "build the bundle again"
            )
        sparse = np.full(self._vocab_size, -np.inf, np.float32)
        with np.errstate(divide="ignore"):  # a probability may underflow to 0 in fp32
            sparse[indices] = np.log(outputs["prob"].reshape(-1))
        return sparse


def load_model(folder: Path, mode: Mode = "exact", on_step: Callable[[], None] = lambda: None) -> Model:
    """Load a bundle. `on_step` is called after the embedding, each layer and the post layer: layers + 2 times.

    Raises AxzooError when the bundle is missing or incomplete, or its files do not match each other.
    """
    return load_files(open_bundle(folder), mode, on_step)


def load_files(
    files: ModelFiles,
    mode: Mode = "exact",
    on_step: Callable[[], None] = lambda: None,
    mmap_embedding: bool = True,
    layers_on_demand: bool = False,
) -> Model:
    """Load the files of a model. With `layers_on_demand`, no layer stays in memory, which is slow.

    Raises AxzooError when a file is missing or damaged, or the files do not match each other.
    """
    embedding = Embedding(files.embedding, files.vocab_size, files.hidden_size, mmap_embedding, files.embedding_scale)
    on_step()
    network = _load_network(files, mode, on_step, layers_on_demand)
    if network.geometry.hidden_size != files.hidden_size:
        raise AxzooError(
            f"{files.layers[0]} has hidden_size {network.geometry.hidden_size}, but the embedding has "
            f"{files.hidden_size}: build the bundle again"
        )
    return Model(embedding, network)


def _load_network(files: ModelFiles, mode: Mode, on_step: Callable[[], None], layers_on_demand: bool) -> Network:
    file_mode: FileMode = "exact" if mode == "exact" else "fast"
    if file_mode == "fast" and not layers_on_demand:
        from axzoo.runtime.fast.network import FusedNetwork  # imports onnx, which exact mode does not need

        return FusedNetwork(files.layers, files.post, on_step, separate_prefill=mode == "fast-prompts")
    layers: list[LayerSession] = []
    for path in files.layers:
        layers.append(SessionOnDemand(path, file_mode) if layers_on_demand else InferenceSession(path, mode=file_mode))
        on_step()
    decoder = Decoder(layers)
    post = InferenceSession(files.post, mode=file_mode)
    require_matching_hidden_state(files.post, post.get_inputs(), decoder.geometry)
    on_step()
    return LayerwiseNetwork(decoder, post)
