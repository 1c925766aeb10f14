"""A layer's lengths, derived from the tensors' shapes as the board's host does, and what must fit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from axzoo.core.errors import AxzooError

_CHUNK = 128
"""Where the files have no prefill group; more would only take more memory."""


class Tensor(Protocol):
    """An input or output of a session."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def dtype(self) -> object: ...


class Grouped(Protocol):
    """What tells a layer's lengths: its shape groups."""

    @property
    def num_shape_groups(self) -> int: ...
    def get_inputs(self, shape_group: int = 0) -> Sequence[Tensor]: ...


@dataclass(frozen=True)
class Geometry:
    """A layer's lengths, under the names the board's host prints; `prefill_token_num` is 0 without prefill groups."""

    hidden_size: int
    max_token_len: int
    kv_cache_size: int
    kv_cache_num: int
    prefill_token_num: int
    prefill_groups: int
    dtype: str

    @property
    def chunk_len(self) -> int:
        """Tokens of a prompt that are read at once, where they are."""
        return self.prefill_token_num or _CHUNK

    @property
    def prefill_reach(self) -> int:
        """Tokens of context the prefill groups reach; a prompt's tokens beyond are decoded one by one."""
        return min(self.prefill_token_num * self.prefill_groups, self.max_token_len)


def read_geometry(session: Grouped) -> Geometry:
    """Derives the lengths from the tensors' shapes."""
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


def one_geometry(layers: Sequence[Grouped]) -> Geometry:
    """The lengths all layers share. Raises AxzooError when they do not belong together."""
    geometries = [read_geometry(layer) for layer in layers]
    for index, other in enumerate(geometries):
        if other != geometries[0]:
            raise AxzooError(
                f"layer {index} does not fit layer 0, {other} is not {geometries[0]}: build the bundle again"
            )
    return geometries[0]


def require_same_state(post: Path, taken: Sequence[Tensor], geometry: Geometry) -> None:
    """Raises AxzooError when the post layer, whose inputs are `taken`, takes another hidden state than the layers
    give."""
    (hidden,) = taken
    found, wanted = (str(hidden.dtype), hidden.shape[-1]), (geometry.dtype, geometry.hidden_size)
    if found != wanted:
        raise AxzooError(f"{post} takes {found}, but the layers give {wanted}: build the bundle again")


def require_room(geometry: Geometry, used: int, count: int) -> None:
    """Raises AxzooError when a prompt is empty, or does not fit: `used` of its tokens were read before, `count` not."""
    if not count:
        raise AxzooError("the prompt is empty: give the model at least one token")
    if used + count > geometry.max_token_len:
        read = f" behind the {used} read already" if used else ""
        raise AxzooError(
            f"the prompt has {used + count} tokens, but the context of {geometry.max_token_len} has room for "
            f"{geometry.max_token_len - used}{read}: shorten it, reset the conversation, or build with a larger "
            "kv_cache_len"
        )
