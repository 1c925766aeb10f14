"""The index of a sharded checkpoint: which file holds which tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axzoo.checkpoint.tensors import TensorInfo
from axzoo.errors import AxzooError
from axzoo.files import read_json


def weight_map(index: Path) -> dict[str, str]:
    """Shard by tensor. Raises AxzooError when the index is damaged or names a file that is not plainly beside it."""
    content = read_json(index)
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise AxzooError(f"{index} has no weight_map: fetch it again")
    for name, shard in listed.items():
        if not _is_plain_name(shard):
            raise AxzooError(f"{index} places {name!r} in {shard!r}: a shard must be a plain file name beside it")
    return listed


def _is_plain_name(shard: Any) -> bool:
    """Whether an index may name this file: not hidden, in no other folder, nothing a terminal would not show."""
    return isinstance(shard, str) and shard.isprintable() and Path(shard).name == shard and shard[:1] not in ("", ".")


def check_index(index: Path, listed: Mapping[str, str], found: Mapping[str, TensorInfo]) -> None:
    """Raises AxzooError when a tensor the index lists is in no shard."""
    for name, shard in listed.items():
        if name not in found:
            raise AxzooError(f"{index} places {name!r} in {shard}, but no shard holds it: fetch the shards again")
