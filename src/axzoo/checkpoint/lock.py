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
from axzoo.checkpoint.part import LockedTensor, Part
from axzoo.checkpoint.tensors import Checkpoint, row_blocks, rows_digest
from axzoo.config_view import ConfigView
from axzoo.errors import AxzooError
from axzoo.families import TensorRef, load_family, supported_model_types
from axzoo.files import canonical_json, read_json, sha256_of, write_json
from axzoo.lock_files import EMBED, INDEX, POST, TOKENIZER_FILES, layer_lock
from axzoo.model_config import merge_model_config
from axzoo.spec import DecoderSpec, LayerSpec, PostSpec


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


def read_spec(
    folder: Path,
    model_type: str,
    num_hidden_layers: int,
    ignore_config_keys: Collection[str],
    model_config: Path | None = None,
) -> DecoderSpec:
    """The spec config.json describes, checked against what the matrix says of the model."""
    path = folder / "config.json"
    config = _read_config(path, model_config)
    said = config.get("model_type")
    if said != model_type and said in supported_model_types():
        raise AxzooError(f"{path} has model_type {said!r}, but the matrix says {model_type!r}")
    path = path if model_config is None else changed_by(path, model_config)
    spec = spec_of(config, path, ignore_config_keys)
    if spec.num_hidden_layers != num_hidden_layers:
        raise AxzooError(
            f"{path} has {spec.num_hidden_layers} layers, but the matrix says num_hidden_layers: {num_hidden_layers}"
        )
    return spec


def changed_by(path: Path, model_config: Path) -> Path:
    """What messages call a config.json with the values that `model_config` puts in their place."""
    return Path(f"{path} as changed by {model_config}")


def spec_of(config: Mapping[str, Any], path: Path, ignore_config_keys: Collection[str]) -> DecoderSpec:
    """The spec a config.json, read from `path`, describes.

    Raises AxzooError when its model_type is not supported, or it says what axzoo cannot build or does not know.
    """
    said = config.get("model_type")
    if said not in supported_model_types():
        raise AxzooError(
            f"{path}: model_type {said!r:.80} is not supported; supported are: {', '.join(supported_model_types())}. "
            f"Not understood: {_not_understood(config)}. "
            f"A model that is one of these under another name needs a model_config that says so"
        )
    view = ConfigView(config, path)
    try:
        spec = load_family(said).decoder_spec(view)
    except AxzooError as error:
        raise error if str(path) in str(error) else AxzooError(f"{path}: {error}") from None
    view.finish(ignore_config_keys)
    return spec


def _read_config(path: Path, model_config: Path | None) -> dict[str, Any]:
    """config.json, or what `model_config` makes of it; alone, where the checkpoint has none."""
    override = None if model_config is None else _mapping(model_config)
    config = _mapping(path) if override is None or path.exists() else {}
    return config if override is None or model_config is None else merge_model_config(config, override, model_config)


def _not_understood(config: Mapping[str, Any]) -> str:
    """What an unsupported config.json says of its architecture, a model nested in it included."""
    said = [f"{key} {config.get(key)!r:.160}" for key in ("model_type", "architectures", "auto_map") if key in config]
    nested = {key: value for key, value in config.items() if isinstance(value, dict) and "model_type" in value}
    said += [f"{key!s:.80} with model_type {value['model_type']!r:.80}" for key, value in nested.items()]
    return ", ".join(said) or "it names no architecture at all"


def _mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise AxzooError(f"{path} is not a mapping")
    return content


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
