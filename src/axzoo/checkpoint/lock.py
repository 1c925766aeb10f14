"""The lock: what a build depends on, as small files instead of multi-gigabyte shards.

`index.json` describes the model; `layer_<i>.json`, `post.json` and `embed.json` each hold one part's spec and the
sha256 of its tensors. A part's file is everything its compile job needs to know, and the only thing it is keyed by.

Making the lock is also the pre-flight: every tensor the spec needs exists with the right shape and finite values, and
none is left over unexplained.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.tensors import Array, Checkpoint, row_blocks, tensor_digest
from axzoo.errors import AxzooError
from axzoo.families import Family, TensorRef, load_family
from axzoo.families.config_view import ConfigView
from axzoo.files import canonical_json, read_json, write_json
from axzoo.spec import DecoderSpec

INDEX = "index.json"
POST = "post.json"
EMBED = "embed.json"
HEAD = "lm_head.weight"

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


@dataclass(frozen=True)
class LockedTensor:
    """A tensor with the digest of its dtype, shape and bytes."""

    name: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class Part:
    """One part of a model: its spec as plain data, and its tensors by role."""

    spec: Mapping[str, Any]
    tensors: Mapping[str, LockedTensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {role: tensor.shape for role, tensor in self.tensors.items()}


@dataclass(frozen=True)
class Lock:
    """A whole model's lock, in memory."""

    spec: DecoderSpec
    layers: tuple[Part, ...]
    post: Part
    embed: Part


def layer_lock(index: int) -> str:
    return f"layer_{index}.json"


def make_lock(folder: Path, model_type: str, num_hidden_layers: int, ignore_config_keys: Collection[str] = ()) -> Lock:
    """Reads config.json and every tensor of the checkpoint in `folder`.

    Raises AxzooError when config.json contradicts the expected model_type or layer count, has keys axzoo does not
    know, or does not fit the tensors; and when a tensor is missing, superfluous, misshapen, damaged or not finite.
    """
    spec = read_spec(folder, model_type, num_hidden_layers, ignore_config_keys)
    family = load_family(model_type)
    checkpoint = open_checkpoint(folder)
    layers = [family.layer_tensors(spec, index) for index in range(num_hidden_layers)]
    post, embed = family.post_tensors(spec), {"embed.weight": family.embed_tensor(spec)}
    needed = {ref.name: ref for refs in (*layers, post, embed) for ref in refs.values()}
    if HEAD in checkpoint.tensors:  # some checkpoints store a tied head a second time
        needed.setdefault(HEAD, TensorRef(HEAD, post["lm_head.weight"].shape))
    _check_tensors(folder, checkpoint, needed, family.IGNORED_TENSORS)
    digests = {name: _digest(folder, checkpoint, name) for name in needed}
    _check_tied_head(folder, spec, family, digests)

    def part(part_spec: Mapping[str, Any], refs: Mapping[str, TensorRef]) -> Part:
        return Part(
            part_spec, {role: LockedTensor(ref.name, ref.shape, digests[ref.name]) for role, ref in refs.items()}
        )

    return Lock(
        spec=spec,
        layers=tuple(part(asdict(spec.layer), refs) for refs in layers),
        post=part(asdict(spec.post), post),
        embed=part({"vocab_size": spec.vocab_size, "hidden_size": spec.layer.hidden_size}, embed),
    )


def read_spec(
    folder: Path, model_type: str, num_hidden_layers: int, ignore_config_keys: Collection[str]
) -> DecoderSpec:
    """The spec config.json describes, checked against what the matrix says of the model."""
    path = folder / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise AxzooError(f"{path} is not a mapping")
    if config.get("model_type") != model_type:
        load_family(str(config.get("model_type")))  # an unsupported one is said to be so
        raise AxzooError(f"{path} has model_type {config.get('model_type')!r}, but the matrix says {model_type!r}")
    view = ConfigView(config, path)
    spec = load_family(model_type).decoder_spec(view)
    view.finish(ignore_config_keys)
    if spec.num_hidden_layers != num_hidden_layers:
        raise AxzooError(
            f"{path} has {spec.num_hidden_layers} layers, but the matrix says num_hidden_layers: {num_hidden_layers}"
        )
    return spec


def write_lock(lock: Lock, folder: Path, checkpoint: Path, source: Mapping[str, Any]) -> None:
    """Writes the lock's files, index.json last. A part's file that already says the same is left untouched, so that
    Snakemake sees which parts changed."""
    for index, part in enumerate(lock.layers):
        _write_part(folder / layer_lock(index), part)
    _write_part(folder / POST, lock.post)
    _write_part(folder / EMBED, lock.embed)
    files = {name: _file_digest(checkpoint / name) for name in TOKENIZER_FILES if (checkpoint / name).is_file()}
    write_json(folder / INDEX, {"spec": lock.spec.to_dict(), "source": source, "tokenizer_files": files})


def _write_part(path: Path, part: Part) -> None:
    try:
        unchanged = path.exists() and canonical_json(read_json(path)) == canonical_json(asdict(part))
    except AxzooError:  # damaged: written anew
        unchanged = False
    if not unchanged:
        write_json(path, asdict(part))


def read_part(path: Path) -> Part:
    """Reads one part's lock file. Raises AxzooError when it is missing or damaged."""
    data = read_json(path)
    try:
        tensors = {
            role: LockedTensor(entry["name"], tuple(entry["shape"]), entry["sha256"])
            for role, entry in data["tensors"].items()
        }
        return Part(data["spec"], tensors)
    except (KeyError, TypeError, AttributeError):
        raise AxzooError(f"{path} is damaged: remove it and lock the checkpoint again") from None


def verified_blocks(checkpoint: Checkpoint, tensor: LockedTensor) -> Iterator[Array]:
    """The tensor's row blocks; after the last one, raises AxzooError if they are not what was locked."""
    info = checkpoint.tensors.get(tensor.name)
    if info is None or info.shape != tensor.shape:
        raise AxzooError(f"tensor {tensor.name} is not what was locked: lock the checkpoint again")
    digest = hashlib.sha256(f"{info.dtype}{list(info.shape)}".encode())
    for block in row_blocks(checkpoint, tensor.name):
        digest.update(block.view("uint8").data)
        yield block
    if digest.hexdigest() != tensor.sha256:
        raise AxzooError(f"{info.file}: tensor {tensor.name} changed after it was locked: lock the checkpoint again")


def _check_tensors(folder: Path, checkpoint: Checkpoint, needed: Mapping[str, TensorRef], ignored: str) -> None:
    missing = [name for name in needed if name not in checkpoint.tensors]
    extra = [name for name in checkpoint.tensors if name not in needed and not re.fullmatch(ignored, name)]
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


def _digest(folder: Path, checkpoint: Checkpoint, name: str) -> str:
    digest, finite = tensor_digest(checkpoint, name)
    if not finite:
        file = folder / checkpoint.tensors[name].file
        raise AxzooError(f"{file}: tensor {name} holds NaN or infinite values: the checkpoint is damaged")
    return digest


def _check_tied_head(folder: Path, spec: DecoderSpec, family: Family, digests: Mapping[str, str]) -> None:
    head = digests.get(HEAD)
    if spec.tie_word_embeddings and head is not None and head != digests[family.embed_tensor(spec).name]:
        raise AxzooError(
            f"{folder / 'config.json'} says tie_word_embeddings, but lm_head.weight differs from the embedding: "
            f"one of the two is wrong"
        )


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(names: list[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ("tensor " if len(names) == 1 else "tensors ") + ", ".join(names[:most]) + rest
