"""The index of a sharded checkpoint: which file holds which tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo.core.errors import AxzooError

if TYPE_CHECKING:
    from axzoo.checkpoint.tensors import TensorInfo  # imports numpy, which planning does not need


def read_weight_map(content: Any, shown: str, suffix: str, remedy: str) -> dict[str, str]:
    """The shard of each tensor. `content` is the parsed index, which messages call `shown`.

    Raises AxzooError when the index is damaged, or when a shard is outside its folder or is not a file of weights.
    """
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise AxzooError(f"{shown} has no weight_map: {remedy}")
    for name, shard in listed.items():
        if not _is_plain_name(shard):
            raise AxzooError(
                f"{shown} places {name!r:.80} in {shard!r:.80}: a shard must be the name of a file in the same folder"
            )
        if suffix not in shard or shard.endswith(".json"):
            raise AxzooError(f"{shown} places {name!r:.80} in {shard!r:.80}, which is not a *{suffix} file")
    return listed


def _is_plain_name(shard: Any) -> bool:
    """Whether this is a printable name of a file in the same folder that is not hidden."""
    return isinstance(shard, str) and shard.isprintable() and Path(shard).name == shard and shard[:1] not in ("", ".")


def check_placed(shown: str, placed: Mapping[str, str], found: Mapping[str, TensorInfo], remedy: str) -> None:
    """Raises AxzooError when no shard contains a tensor that the index lists."""
    for name, shard in placed.items():
        if name not in found:
            raise AxzooError(
                f"{shown} places {name!r:.80} in {shard}, but no shard contains it: they belong to different "
                f"checkpoints, or a shard is damaged: {remedy}"
            )
