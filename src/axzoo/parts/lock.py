"""The lock: what a build depends on, as small files instead of multi-gigabyte shards.

`index.json` describes the model; `layer_<i>.json`, `post.json` and `embed.json` each hold one part's spec and the
BLAKE3 of its tensors, which is as good as sha256 and four times as fast. A part's file is everything its compile job
needs to know, and the only thing it is keyed by.

Making the lock is also the pre-flight: every tensor the spec needs exists with the right shape and finite values, and
none is left over unexplained.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.tensors import Checkpoint, row_blocks, rows_digest
from axzoo.core.errors import AxzooError
from axzoo.core.files import canonical_json, read_json, sha256_of, write_json
from axzoo.model.families import load_family
from axzoo.model.reading import read_spec
from axzoo.model.spec import DecoderSpec, LayerSpec, PostSpec, TensorRef
from axzoo.parts.part import LockedTensor, Part

INDEX = "index.json"
POST = "post.json"
EMBED = "embed.json"

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
"""The checkpoint's small files that travel into a bundle's tokenizer folder."""


def layer_lock(index: int) -> str:
    """The file name of a layer's lock."""
    return f"layer_{index}.json"


@dataclass(frozen=True)
class Lock:
    """A whole model's lock, in memory."""

    spec: DecoderSpec
    layers: tuple[Part, ...]
    post: Part
    embed: Part


def make_lock(
    folder: Path,
    model_type: str,
    num_hidden_layers: int,
    ignore_config_keys: Collection[str] = (),
    model_config: Path | None = None,
    threads: int = 1,
) -> Lock:
    """Reads config.json, with what `model_config` overrides of it, and every tensor of the checkpoint in `folder`;
    `threads` tensors are digested at once.

    Raises AxzooError when config.json contradicts the expected model_type or layer count, has keys axzoo does not
    know, or does not fit the tensors; and when a tensor is missing, superfluous, misshapen, damaged or not finite.
    """
    spec = read_spec(folder, model_type, num_hidden_layers, ignore_config_keys, model_config)
    family = load_family(model_type)
    checkpoint = open_checkpoint(folder)
    layers = [family.layer_tensors(spec, index) for index in range(num_hidden_layers)]
    post, embed = family.post_tensors(spec), {"embed.weight": family.embed_tensor(spec)}
    needed = {ref.name: ref for refs in (*layers, post, embed) for ref in refs.values()}
    head, embedding = post["lm_head.weight"], embed["embed.weight"]
    copy = embedding.name.replace("model.embed_tokens", "lm_head")  # some checkpoints store a tied head a second time
    if head == embedding and copy in checkpoint.tensors:
        needed[copy] = TensorRef(copy, head.shape)
    _check_tensors(folder, checkpoint, needed, family.IGNORED_TENSORS)
    if copy in needed and head == embedding:
        _check_tied_head(folder, checkpoint, copy, embedding.name)

    refs = sorted({ref for refs in (*layers, post, embed) for ref in refs.values()}, key=_size, reverse=True)
    with ThreadPoolExecutor(threads) as pool:
        locked = dict(zip(refs, pool.map(partial(digest_rows, folder, checkpoint), refs), strict=True))

    def part(part_spec: LayerSpec | PostSpec | dict[str, int], refs: Mapping[str, TensorRef]) -> Part:
        plain = part_spec if isinstance(part_spec, dict) else asdict(part_spec)
        return Part(plain, {role: locked[ref] for role, ref in refs.items()})

    return Lock(
        spec=spec,
        layers=tuple(part(spec.layer_spec(index), refs) for index, refs in enumerate(layers)),
        post=part(spec.post, post),
        embed=part({"vocab_size": spec.vocab_size, "hidden_size": spec.layer.hidden_size}, embed),
    )


def write_lock(lock: Lock, folder: Path, checkpoint: Path, source: Mapping[str, Any]) -> None:
    """Writes the lock's files, index.json last. A file that already says the same is left untouched, so that Snakemake
    sees what changed."""
    for index, part in enumerate(lock.layers):
        _write_changed(folder / layer_lock(index), asdict(part))
    _write_changed(folder / POST, asdict(lock.post))
    _write_changed(folder / EMBED, asdict(lock.embed))
    files = {name: sha256_of(checkpoint / name) for name in TOKENIZER_FILES if (checkpoint / name).is_file()}
    _write_changed(folder / INDEX, {"spec": lock.spec.to_dict(), "source": source, "tokenizer_files": files})


def _write_changed(path: Path, value: Mapping[str, Any]) -> None:
    try:
        unchanged = path.exists() and canonical_json(read_json(path)) == canonical_json(value)
    except AxzooError:  # damaged: written anew
        unchanged = False
    if not unchanged:
        write_json(path, value)


def _check_tensors(folder: Path, checkpoint: Checkpoint, needed: Mapping[str, TensorRef], ignored: str) -> None:
    missing = [name for name in needed if name not in checkpoint.tensors]
    extra = [name for name in checkpoint.tensors if name not in needed and not re.fullmatch(ignored, name)]
    extra = [name for name in extra if not _adds_nothing(checkpoint, name, needed)]
    if missing or extra:
        said = [f"lacks {_listed(missing)}"] if missing else []
        said += [f"has {_listed(extra)}, which config.json does not account for"] if extra else []
        raise AxzooError(f"{folder}: the checkpoint {' and '.join(said)}")
    for name, ref in needed.items():
        info = checkpoint.tensors[name]
        if info.shape != ref.shape:
            raise AxzooError(
                f"{folder / info.file}: tensor {name} has shape {list(info.shape)}, "
                f"but {folder / 'config.json'} demands {list(ref.shape)}"
            )


def _adds_nothing(checkpoint: Checkpoint, name: str, needed: Collection[str]) -> bool:
    """Whether this is the bias of zeros that AutoGPTQ once gave every layer that has none."""
    if not name.endswith(".bias") or name.removesuffix("bias") + "weight" not in needed:
        return False
    shape = checkpoint.tensors[name].shape
    return len(shape) == 1 and not any(block.any() for block in row_blocks(checkpoint, name, 0, shape[0]))


def _size(ref: TensorRef) -> int:
    """Largest first, no thread is left alone with a large tensor at the end."""
    start, stop = ref.rows or (0, ref.shape[0])
    return (stop - start) * math.prod(ref.shape[1:])


def digest_rows(folder: Path, checkpoint: Checkpoint, ref: TensorRef) -> LockedTensor:
    """Digests a reference's rows. Raises AxzooError when a value is not finite."""
    info = checkpoint.tensors[ref.name]
    start, stop = ref.rows or (0, ref.shape[0])
    shape = (stop - start, *ref.shape[1:])
    digest = rows_digest(info.dtype, shape)
    for block in row_blocks(checkpoint, ref.name, start, stop):
        if not np.isfinite(block).all():
            raise AxzooError(
                f"{folder / info.file}: tensor {ref.name} holds NaN or infinite values: the checkpoint is damaged"
            )
        digest.update(np.ascontiguousarray(block).view(np.uint8).data)
    return LockedTensor(ref.name, start, shape, digest.hexdigest())


def _check_tied_head(folder: Path, checkpoint: Checkpoint, head: str, embedding: str) -> None:
    rows = checkpoint.tensors[head].shape[0]
    pairs = zip(row_blocks(checkpoint, head, 0, rows), row_blocks(checkpoint, embedding, 0, rows), strict=True)
    if not all(np.array_equal(a, b) for a, b in pairs):
        raise AxzooError(
            f"{folder / 'config.json'} says tie_word_embeddings, but {head} differs from the embedding: "
            f"one of the two is wrong"
        )


def _listed(names: list[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ("tensor " if len(names) == 1 else "tensors ") + ", ".join(names[:most]) + rest
