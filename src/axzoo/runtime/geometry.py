"""Lengths of a layer, derived from its tensor shapes as the board's host program does, and checks against them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from axzoo.core.errors import AxzooError

_DEFAULT_CHUNK = 128
"""Chunk length for files without a prefill group. Longer chunks only take more memory."""


class SessionTensor(Protocol):
    """An input or output of a session."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def dtype(self) -> object: ...


class HasShapeGroups(Protocol):
    """A layer's shape groups and their inputs, from which its lengths are derived."""

    @property
    def num_shape_groups(self) -> int: ...
    def get_inputs(self, shape_group: int = 0) -> Sequence[SessionTensor]: ...


@dataclass(frozen=True)
class Geometry:
    """Lengths of a layer, named as the board's host program prints them.

    `prefill_token_num` is 0 if there are no prefill groups.
    """

    hidden_size: int
    max_token_len: int
    kv_cache_size: int
    kv_cache_num: int
    prefill_token_num: int
    prefill_groups: int
    dtype: str

    @property
    def chunk_len(self) -> int:
        """Prompt tokens per chunk. Files without prefill groups get a default, which fast mode uses."""
        return self.prefill_token_num or _DEFAULT_CHUNK


def read_geometry(session: HasShapeGroups) -> Geometry:
    """Derive the lengths of a layer from its tensor shapes."""
    inputs = {tensor.name: tensor for tensor in session.get_inputs(0)}
    groups = session.num_shape_groups - 1
    prefill = {tensor.name: tensor for tensor in session.get_inputs(1)} if groups else {}
    return Geometry(
        hidden_size=inputs["input"].shape[-1],
        max_token_len=inputs["mask"].shape[-1] - 1,
        kv_cache_size=inputs["K_cache"].shape[-1],
        kv_cache_num=inputs["K_cache"].shape[-2],
        prefill_token_num=prefill["indices"].shape[-1] if groups else 0,
        prefill_groups=groups,
        dtype=str(inputs["input"].dtype),
    )


def common_geometry(layers: Sequence[HasShapeGroups]) -> Geometry:
    """Return the lengths that all layers share. Raises AxzooError when the layers differ."""
    geometries = [read_geometry(layer) for layer in layers]
    for index, other in enumerate(geometries):
        if other != geometries[0]:
            raise AxzooError(
                f"layer {index} does not match layer 0 ({other} instead of {geometries[0]}): build the bundle again"
            )
    return geometries[0]


def require_matching_hidden_state(post: Path, inputs: Sequence[SessionTensor], geometry: Geometry) -> None:
    """Raise AxzooError when the hidden state that the post layer takes differs from the one the layers return."""
    (hidden,) = inputs
    found, expected = (str(hidden.dtype), hidden.shape[-1]), (geometry.dtype, geometry.hidden_size)
    if found != expected:
        raise AxzooError(f"{post} takes {found}, but the layers return {expected}: build the bundle again")


def require_room(geometry: Geometry, used: int, count: int) -> None:
    """Raise AxzooError when a prompt is empty or does not fit the context.

    `used` of its tokens are cached, and `count` are still to be read.
    """
    if not count:
        raise AxzooError("the prompt is empty: give the model at least one token")
    if used + count > geometry.max_token_len:
        cached, reset = (f", {used} of them cached", "reset the conversation, ") if used else ("", "")
        raise AxzooError(
            f"the prompt has {used + count} tokens{cached}, but the context holds only {geometry.max_token_len}: "
            f"shorten the prompt, {reset}or build with a larger kv_cache_len"
        )
