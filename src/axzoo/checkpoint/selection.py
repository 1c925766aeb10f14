"""Which files belong to a checkpoint, and the index of a sharded one: which file holds which tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json

if TYPE_CHECKING:
    from axzoo.checkpoint.tensors import TensorInfo  # imports numpy, which planning does not need

_SMALL = frozenset({
    "README.md", "added_tokens.json", "chat_template.jinja", "chat_template.json", "config.json",
    "generation_config.json", "merges.txt", "preprocessor_config.json", "processor_config.json", "quantize_config.json",
    "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
})  # fmt: skip
_SAFETENSORS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_PICKLED = re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin|pytorch_model\.bin\.index\.json")


def is_weights(name: str) -> bool:
    """Whether a file of this name holds weights or is an index of them."""
    return bool(_SAFETENSORS.fullmatch(name) or _PICKLED.fullmatch(name))


def is_checkpoint_file(name: str) -> bool:
    """Whether a file of this name is part of a checkpoint."""
    return name in _SMALL or is_weights(name)


def checkpoint_files(names: Iterable[str], where: str) -> list[str]:
    """The sorted names of the files in `where` that make up the checkpoint; pickles only if there are no safetensors.

    Raises AxzooError when config.json or the weights are missing.
    """
    listed = set(names)
    weights = {name for name in listed if _SAFETENSORS.fullmatch(name)}
    weights = weights or {name for name in listed if _PICKLED.fullmatch(name)}
    if "config.json" not in listed:
        raise AxzooError(f"{where} contains no config.json: it is not a Hugging Face checkpoint")
    if not weights:
        raise AxzooError(
            f"{where} contains no weights that axzoo can read: neither model*.safetensors nor pytorch_model*.bin"
        )
    return sorted((listed & _SMALL) | weights)


def refuse_foreign_files(folder: Path, expected: Iterable[str]) -> None:
    """Raises AxzooError when `folder` contains unexpected checkpoint files, which readers would otherwise use."""
    found = {path.name for path in folder.iterdir() if is_checkpoint_file(path.name)}
    foreign = sorted(found - set(expected))
    if foreign:
        raise AxzooError(f"{folder} contains {', '.join(foreign)} from another fetch: remove the folder and run again")


def weight_map(index: Path) -> dict[str, str]:
    """The shard of each tensor. Raises AxzooError when the index is damaged or names a file outside its folder."""
    content = read_json(index)
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise AxzooError(f"{index} has no weight_map: fetch it again")
    for name, shard in listed.items():
        if not _is_plain_name(shard):
            raise AxzooError(
                f"{index} places {name!r} in {shard!r}: a shard must be the name of a file in the same folder"
            )
    return listed


def _is_plain_name(shard: Any) -> bool:
    """Whether this is a printable name of a file in the same folder that is not hidden."""
    return isinstance(shard, str) and shard.isprintable() and Path(shard).name == shard and shard[:1] not in ("", ".")


def check_index(index: Path, listed: Mapping[str, str], found: Mapping[str, TensorInfo]) -> None:
    """Raises AxzooError when no shard contains a tensor that the index lists."""
    for name, shard in listed.items():
        if name not in found:
            raise AxzooError(f"{index} places {name!r} in {shard}, but no shard contains it: fetch the shards again")
