"""The index of a sharded checkpoint: which file holds which tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json

if TYPE_CHECKING:
    from axzoo.checkpoint.tensors import TensorInfo

_SMALL = frozenset({
    "README.md", "added_tokens.json", "chat_template.jinja", "chat_template.json", "config.json",
    "generation_config.json", "merges.txt", "preprocessor_config.json", "processor_config.json", "quantize_config.json",
    "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
})  # fmt: skip
_SAFETENSORS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_PICKLED = re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin|pytorch_model\.bin\.index\.json")


def is_weights(name: str) -> bool:
    """Whether the file holds (or indexes) weights."""
    return bool(_SAFETENSORS.fullmatch(name) or _PICKLED.fullmatch(name))


def belongs(name: str) -> bool:
    """Whether a file of this name is part of a checkpoint."""
    return name in _SMALL or is_weights(name)


def checkpoint_files(names: Iterable[str], where: str) -> list[str]:
    """The names, sorted, that make up the checkpoint in the top folder of `where`; pickles only without safetensors.

    Raises AxzooError when config.json or the weights are missing.
    """
    listed = set(names)
    weights = {name for name in listed if _SAFETENSORS.fullmatch(name)}
    weights = weights or {name for name in listed if _PICKLED.fullmatch(name)}
    if "config.json" not in listed:
        raise AxzooError(f"{where} holds no config.json: it is not a Hugging Face checkpoint")
    if not weights:
        raise AxzooError(f"{where} holds neither model*.safetensors nor pytorch_model*.bin: axzoo reads these weights")
    return sorted((listed & _SMALL) | weights)


def refuse_strangers(folder: Path, expected: Iterable[str]) -> None:
    """Raises AxzooError when `folder` holds checkpoint files of another fetch, which readers could take for ours."""
    found = {path.name for path in folder.iterdir() if belongs(path.name)}
    strangers = sorted(found - set(expected))
    if strangers:
        raise AxzooError(f"{folder} holds {', '.join(strangers)} of another fetch: remove the folder and run again")


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
