"""What stands between a token's embedding and what the post layer gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from axzoo.runtime.decoder import Decoder, Geometry, HiddenHook, Session

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
