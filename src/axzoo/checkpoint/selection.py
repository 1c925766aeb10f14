"""Which files of a folder are the checkpoint. Fetches, receipts, Snakemake's inputs and readers all ask this module.

The weights are those that transformers loads: the first of model.safetensors, the shards of its index,
pytorch_model.bin, the shards of its index. A folder without these may contain one complete set of numbered shards
without an index, or a GGUF file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from axzoo.checkpoint.listing import ADAPTER, Listing, shown_names
from axzoo.checkpoint.shard_index import read_weight_map
from axzoo.checkpoint.unreadable import adapter_refusal, no_weights
from axzoo.core.errors import AxzooError

Format = Literal["safetensors", "pickled", "gguf"]

SMALL = frozenset({
    "README.md", "added_tokens.json", "chat_template.jinja", "chat_template.json", "config.json",
    "generation_config.json", "merges.txt", "preprocessor_config.json", "processor_config.json", "quantize_config.json",
    "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
})  # fmt: skip
"""Files besides the weights that belong to a checkpoint."""

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
"""Those of them that are copied to a bundle's tokenizer folder."""

_STANDARD: Mapping[str, Format] = {"model.safetensors": "safetensors", "pytorch_model.bin": "pickled"}
"""File names of weights in one file, in transformers' order. The index of shards is called <name>.index.json."""

_SUFFIX: Mapping[Format, str] = {"safetensors": ".safetensors", "pickled": ".bin"}

_SHARD = re.compile(
    r"((?:model|pytorch_model)(?:\.safetensors|\.bin)?)-(\d{1,9})-of-(\d{1,9})((?:\.safetensors|\.bin)?)"
)


@dataclass(frozen=True)
class Weights:
    """The files that contain the weights. `placed` is the weight_map of the index, if there is one."""

    format: Format
    files: tuple[str, ...]
    index: str | None = None
    placed: Mapping[str, str] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The weights and their index."""
        return (*self.files, *([] if self.index is None else [self.index]))


@dataclass(frozen=True)
class CheckpointFiles:
    """All files of a checkpoint. `unused` are other files with weights, which are ignored as transformers does."""

    weights: Weights
    small: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return sorted((*self.small, *self.weights.names))


def is_weights(name: str) -> bool:
    """Whether a file of this name may be selected as weights, or is their index. A GGUF file does not count."""
    return name.removesuffix(".index.json") in _STANDARD or _shard(name) is not None


def _shard(name: str) -> re.Match[str] | None:
    shard = _SHARD.fullmatch(name)
    return shard if shard and (shard[1] + shard[4]).endswith((".safetensors", ".bin")) else None


def is_gguf(name: str) -> bool:
    return name.lower().endswith(".gguf")


def select_files(listing: Listing, gguf: str | None = None) -> CheckpointFiles:
    """The files that make up the checkpoint. `gguf` is the GGUF file to use instead of other weights, or None.

    Raises AxzooError when config.json, weights or a shard are missing, when it is not clear which weights are meant,
    and when an adapter would change them.
    """
    weights = select_weights(listing) if gguf is None else _named_gguf(listing, gguf)
    small = () if weights.format == "gguf" else tuple(sorted(listing.names & SMALL))
    if weights.format != "gguf" and "config.json" not in listing.names:
        raise AxzooError(f"{listing.shown} contains no config.json: it is not a Hugging Face checkpoint")
    unused = sorted(name for name in listing.names - {*weights.names} if is_weights(name))
    return CheckpointFiles(weights, small, tuple(unused))


def select_weights(listing: Listing) -> Weights:
    """The files that contain the weights. Raises AxzooError like `select_files`."""
    if ADAPTER in listing.names:
        raise adapter_refusal(listing, alone="config.json" not in listing.names)
    for name, form in _STANDARD.items():
        if name in listing.names:
            return Weights(form, (name,))
        if f"{name}.index.json" in listing.names:
            return _indexed(listing, f"{name}.index.json", form)
    weights = _numbered(listing) or _single_gguf(listing)
    if weights is None:
        raise no_weights(listing)
    return weights


def refuse_foreign_files(names: Iterable[str], expected: Iterable[str], shown: str) -> None:
    """Raises AxzooError when `names`, the files in the folder `shown`, include files of a checkpoint other than
    `expected`, because they may change what is selected."""
    foreign = {name for name in names if name in SMALL or name == ADAPTER or is_weights(name)} - {*expected}
    if foreign:
        raise AxzooError(
            f"{shown} contains {', '.join(sorted(foreign))} from another fetch: remove the folder and run again"
        )


def _indexed(listing: Listing, index: str, form: Format) -> Weights:
    placed = read_weight_map(listing.read(index), f"{listing.shown}/{index}", _SUFFIX[form], listing.remedy)
    shards = sorted(set(placed.values()))
    missing = [shard for shard in shards if shard not in listing.names]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise AxzooError(
            f"{listing.shown}: {shown_names(missing)} {verb} missing, and {index} places tensors there: "
            f"{listing.remedy}"
        )
    return Weights(form, tuple(shards), index, placed)


def _numbered(listing: Listing) -> Weights | None:
    """One complete set of shards model-<i>-of-<n>.safetensors or pytorch_model-<i>-of-<n>.bin without an index."""
    sets: dict[tuple[str, str, str], dict[int, str]] = {}
    for name in sorted(listing.names):
        if shard := _shard(name):
            sets.setdefault((shard[1], shard[3], shard[4]), {})[int(shard[2])] = name
    if not sets:
        return None
    if len(sets) > 1:
        some = ", ".join(min(shards.values()) for shards in sets.values())
        raise AxzooError(
            f"{listing.shown} contains shards of several checkpoints ({some}) and no index: keep one set of shards"
        )
    ((_, count, _), shards), *_ = sets.items()
    total = int(count)
    shown = f"{listing.shown} contains no index, and its shards ({shown_names(sorted(shards.values()))})"
    if not all(1 <= number <= total for number in shards):
        raise AxzooError(f"{shown} are not numbered 1 to {total}: copy or write their index, too")
    if len(shards) < total:
        raise AxzooError(f"{shown} are {len(shards)} of {total}: {listing.remedy}")
    files = tuple(shards[number] for number in sorted(shards))
    return Weights("safetensors" if ".safetensors" in files[0] else "pickled", files)


def _single_gguf(listing: Listing) -> Weights | None:
    found = sorted(name for name in listing.names if is_gguf(name))
    if not found:
        return None
    if len(found) > 1:
        raise AxzooError(
            f"{listing.shown} contains {len(found)} GGUF files ({shown_names(found, 20)}): {listing.choose}"
        )
    return _named_gguf(listing, found[0])


def _named_gguf(listing: Listing, name: str) -> Weights:
    if name not in listing.names or not is_gguf(name):
        there = [other for other in sorted(listing.names) if is_gguf(other)]
        known = f"it contains {shown_names(there, 20)}" if there else "it contains no GGUF file"
        raise AxzooError(f"{listing.shown} contains no GGUF file {name}: {known}")
    part = re.search(r"-\d+-of-(\d+)\.gguf$", name, re.IGNORECASE)
    if part and int(part[1]) > 1:
        raise AxzooError(
            f"{listing.shown}/{name} is one of {int(part[1])} parts of a split GGUF file: join them with llama.cpp's "
            f"`llama-gguf-split --merge`, and give the path of the result"
        )
    return Weights("gguf", (name,))
