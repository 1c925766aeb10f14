"""The lock: small files that represent the checkpoint's multi-gigabyte shards as dependencies of a build.

`index.json` describes the model. Each part has a file, such as `layer_<i>.json`, with its spec and the BLAKE3 digests
of its tensors. Compile jobs depend on the file of their part instead of the checkpoint.

Locking also validates the checkpoint: every tensor that the spec needs must exist with the right shape and finite
values, and there must be no unexpected tensors.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.local_files import remedy
from axzoo.checkpoint.selection import TOKENIZER_FILES
from axzoo.checkpoint.tensors import Checkpoint, row_blocks, rows_digest
from axzoo.core.errors import AxzooError
from axzoo.core.files import has_file, json_text, read_json, sha256_of, write_text
from axzoo.model.families import Family, load_family
from axzoo.model.reading import read_config, read_spec
from axzoo.model.spec import DecoderSpec, TensorRef
from axzoo.model.text_parts import vision_language_model
from axzoo.parts.kind import PartId
from axzoo.parts.kinds import KINDS, kind_of
from axzoo.parts.lock_index import INDEX, LOCK_FORMAT
from axzoo.parts.part import LockedTensor, Part
from axzoo.parts.tensor_names import adds_nothing, model_names, problem, renamed, tied_contradiction, without_ignored

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lock:
    """The lock of a whole model in memory: its spec and its parts, ordered by kind.

    `ignored` are the config keys and tensors that the user vouches for, by kind; kinds without any are left out.
    `config` is the config.json that the spec was read from; it may also have keys without effect.
    """

    spec: DecoderSpec
    parts: tuple[Part, ...]
    ignored: Mapping[str, Sequence[str]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def of_kind(self, kind: str) -> list[Part]:
        return [part for part in self.parts if part.id.kind == kind]


def make_lock(
    folder: Path,
    model_type: str,
    num_hidden_layers: int,
    ignore_config_keys: Collection[str] = (),
    model_config: Path | None = None,
    threads: int = 1,
    ignore_tensors: Sequence[str] = (),
) -> Lock:
    """Locks the checkpoint in `folder`: reads config.json, overridden by `model_config`, and digests every tensor,
    `threads` of them in parallel.

    Tensors are found under the names that common tools give them (`model_names`), and locked under those names.
    `ignore_tensors` are patterns of tensors that the user vouches for.

    Raises AxzooError when config.json has another model_type or layer count, has unknown keys, or does not match the
    tensors; and when a tensor is missing, unexpected, damaged, of the wrong shape or not finite.
    """
    spec = read_spec(folder, model_type, num_hidden_layers, ignore_config_keys, model_config)
    family = load_family(model_type)
    checkpoint = open_checkpoint(folder)
    refs = {part: kind.tensors(family, spec, part.index) for kind in KINDS for part in kind.ids(spec)}
    needed = {ref.name: ref for roles in refs.values() for ref in roles.values()}
    try:
        names = model_names(checkpoint.tensors, needed, family.embed_tensor(spec).name)
        other_models = _other_models(folder, family)
        extra = [name for name in names if name not in needed and not adds_nothing(name, other_models)]
        extra = without_ignored(extra, ignore_tensors)
    except AxzooError as error:
        raise AxzooError(f"{folder}: {error}") from None
    if example := renamed(names):
        logger.info(f"tensors have other names than in transformers: {example}")
    copies = [name for name in extra if name == _head(family, spec) and spec.tie_word_embeddings]
    needed |= {name: replace(family.embed_tensor(spec), name=name) for name in copies}
    extra = [name for name in extra if name not in copies and not _is_zero_bias(checkpoint, name, names, needed)]
    missing = [name for name in needed if name not in names]
    if missing or extra:
        tied_head = None if spec.tie_word_embeddings else _head(family, spec)
        raise AxzooError(f"{folder}: the checkpoint {problem(missing, extra, names, tied_head)}")
    stored = {ref: replace(ref, name=names[ref.name]) for roles in refs.values() for ref in roles.values()}
    _check_shapes(folder, checkpoint, [replace(ref, name=names[name]) for name, ref in needed.items()])
    for name in copies:
        _check_tied_head(folder, checkpoint, names[name], names[family.embed_tensor(spec).name])

    largest_first = sorted(stored.values(), key=_size, reverse=True)
    with ThreadPoolExecutor(threads) as pool:
        digested = pool.map(partial(digest_rows, folder, checkpoint), largest_first)
        locked = dict(zip(largest_first, digested, strict=True))

    def lock_part(part: PartId, roles: Mapping[str, TensorRef]) -> Part:
        part_spec = asdict(kind_of(part.kind).spec(spec, part.index))
        return Part(part, part_spec, {role: locked[stored[ref]] for role, ref in roles.items()})

    parts = tuple(lock_part(part, roles) for part, roles in refs.items())
    ignored = {"config_keys": sorted(ignore_config_keys), "tensors": sorted(ignore_tensors)}
    config = read_config(folder / "config.json", model_config)
    return Lock(spec, parts, {kind: names for kind, names in ignored.items() if names}, config)


def _other_models(folder: Path, family: Family) -> str | None:
    """A regular expression for tensors of models in the checkpoint that are not built; None if there are none."""
    path = folder / "config.json"
    config = read_json(path) if has_file(path) else {}
    whole = vision_language_model(config)
    if whole is None:
        return getattr(family, "IGNORED_TENSORS", None)
    name = config["model_type"]
    logger.info(f"{path} is that of {name}: its language model is built, its vision part is not")
    return whole.tensors


def _head(family: Family, spec: DecoderSpec) -> str | None:
    """The name of the lm_head, which tied checkpoints may store as well; None if the family cannot tie it."""
    own, tied = (
        family.post_tensors(replace(spec, tie_word_embeddings=flag))["lm_head.weight"].name for flag in (False, True)
    )
    return None if own == tied else own


def write_lock(lock: Lock, folder: Path, checkpoint: Path, source: Mapping[str, Any]) -> None:
    """Writes the lock's files, index.json last. Files with unchanged content are not rewritten, so that Snakemake sees
    which ones changed."""
    for part in lock.parts:
        _write_changed(folder / part.id.lock_file, part.to_dict())
    files = {name: sha256_of(checkpoint / name) for name in TOKENIZER_FILES if has_file(checkpoint / name)}
    index: dict[str, Any] = {"spec": lock.spec.to_dict(), "source": source, "tokenizer_files": files}
    index["config"] = lock.config
    if lock.ignored:
        index["ignored"] = lock.ignored
    _write_changed(folder / INDEX, {"format": LOCK_FORMAT, **index})


def _write_changed(path: Path, value: Mapping[str, Any]) -> None:
    text = json_text(value)
    try:
        unchanged = path.read_bytes() == text.encode()
    except OSError:
        unchanged = False
    if not unchanged:
        write_text(path, text)


def _check_shapes(folder: Path, checkpoint: Checkpoint, refs: Sequence[TensorRef]) -> None:
    for ref in refs:
        info = checkpoint.tensors[ref.name]
        if info.shape != ref.shape:
            raise AxzooError(
                f"{folder / info.file}: tensor {ref.name} has shape {list(info.shape)}, "
                f"but {folder / 'config.json'} requires {list(ref.shape)}"
            )


def _is_zero_bias(checkpoint: Checkpoint, name: str, names: Mapping[str, str], needed: Collection[str]) -> bool:
    """Whether this is an all-zero bias, which old AutoGPTQ versions added to every linear layer without one."""
    if not name.endswith(".bias") or name.removesuffix("bias") + "weight" not in needed:
        return False
    shape = checkpoint.tensors[names[name]].shape
    return len(shape) == 1 and not any(block.any() for block in row_blocks(checkpoint, names[name], 0, shape[0]))


def _size(ref: TensorRef) -> int:
    """The number of values. Digesting the largest tensors first keeps all threads busy until the end."""
    start, stop = ref.rows or (0, ref.shape[0])
    return (stop - start) * math.prod(ref.shape[1:])


def digest_rows(folder: Path, checkpoint: Checkpoint, ref: TensorRef) -> LockedTensor:
    """Digests the referenced rows. Raises AxzooError when a value is not finite."""
    info = checkpoint.tensors[ref.name]
    start, stop = ref.rows or (0, ref.shape[0])
    shape = (stop - start, *ref.shape[1:])
    digest = rows_digest(info.dtype, shape)
    for block in row_blocks(checkpoint, ref.name, start, stop):
        if not np.isfinite(block).all():
            raise AxzooError(
                f"{folder / info.file}: tensor {ref.name} contains NaN or infinity: the checkpoint is damaged, "
                f"{remedy(folder)}"
            )
        digest.update(np.ascontiguousarray(block).view(np.uint8).data)
    return LockedTensor(ref.name, start, shape, digest.hexdigest())


def _check_tied_head(folder: Path, checkpoint: Checkpoint, head: str, embedding: str) -> None:
    rows = checkpoint.tensors[head].shape[0]
    pairs = zip(row_blocks(checkpoint, head, 0, rows), row_blocks(checkpoint, embedding, 0, rows), strict=True)
    if not all(np.array_equal(a, b) for a, b in pairs):
        raise AxzooError(
            f"{folder / 'config.json'} sets tie_word_embeddings, but {tied_contradiction(head, embedding)}"
        )
