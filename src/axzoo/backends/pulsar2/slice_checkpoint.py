"""Slices: small checkpoints with some layers of a model, or with its post layer, for a compiler that takes checkpoints.

A slice of layers has their weights and a tiny random vocabulary. A slice of the post layer has its weights and one
small random decoder layer. Both are written a block of rows at a time. This module is part of the store keys of
compiled files.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.backends import Order  # unfollowed: a type
from axzoo.checkpoint.tensors import BLOCK_BYTES, DTYPES
from axzoo.checkpoint.writing import StreamedTensor, write_streamed
from axzoo.core.errors import AxzooError
from axzoo.core.files import write_json
from axzoo.model.families import Family, load_family  # unfollowed: the lock depends on it
from axzoo.model.spec import DecoderSpec, LayerSpec, TensorRef
from axzoo.parts.lock_index import LockIndex  # unfollowed: a type

VOCABULARY = 512
"""Rows of a random embedding: a multiple of the 32 rows in which the compiler stores a post layer."""

_POST_INNER = 512
"""The intermediate_size of a post slice's decoder layer, which is thrown away."""

_DROPPED = ("auto_map", "quantization_config")
"""Keys of config.json that name files a slice does not have, and a quantization that its weights do not have."""

_PER_LAYER = ("layer_types", "no_rope_layers")
_TOKEN_IDS = {"bos_token_id": 1, "eos_token_id": 2}
_CLOSE = 1e-9

Blocks = Callable[[], "Iterable[NDArray[Any]]"]


@dataclass(frozen=True)
class Slice:
    """A checkpoint in a folder, and the spec that its config.json gives."""

    folder: Path
    spec: DecoderSpec


def write_layers(orders: Sequence[Order], folder: Path) -> Slice:
    """Writes a slice whose layer j is the layer of `orders[j]`.

    Raises AxzooError when the slice would not compute the same as these layers of the model.
    """
    index = _index(orders[0])
    family = load_family(index.spec.model_type)
    layers = [order.part.index or 0 for order in orders]
    config = _tiny_vocabulary(_config(index, family, layers, orders[0].recipe.embedding_scale == "host"), family)
    spec = _spec_of(config, index, folder)
    for position, order in enumerate(orders):
        _require_same_layer(spec.layer_spec(position), order, layers[0] if position == 0 else None)
    sources: dict[str, list[_Rows]] = {}
    for position, order in enumerate(orders):
        for role, ref in family.layer_tensors(spec, position).items():
            _add(sources, ref, order.shapes[role], _reader(order, role))
    dtype = _dtype_of(_reader(orders[0], next(iter(orders[0].shapes))))
    for ref in (*family.post_tensors(spec).values(), family.embed_tensor(spec)):
        if ref.name not in sources:
            _add(sources, ref, ref.shape, _random(ref, dtype))
    return _write(folder, config, spec, sources)


def write_post(order: Order, folder: Path) -> Slice:
    """Writes a slice with the post layer of `order`. Raises AxzooError when it would not be the model's post layer."""
    index = _index(order)
    family = load_family(index.spec.model_type)
    config = _config(index, family, [0], True)
    inner = family.CONFIG_KEYS.names.get("intermediate_size", "intermediate_size")
    config[inner] = min(_POST_INNER, index.spec.layer.intermediate_size)
    spec = _spec_of(config, index, folder)
    if spec.post != order.spec:
        raise AxzooError(f"a slice of {index.spec.model_type} has another post layer than the model: {_REPORT}")
    sources: dict[str, list[_Rows]] = {}
    for role, ref in family.post_tensors(spec).items():
        _add(sources, ref, order.shapes[role], _reader(order, role))
    head = next(role for role, shape in order.shapes.items() if len(shape) == 2)
    dtype, embedding = _dtype_of(_reader(order, head)), family.embed_tensor(spec)
    if embedding.name not in sources:  # any rows do; these are there
        _add(sources, embedding, order.shapes[head], _reader(order, head))
    for ref in family.layer_tensors(spec, 0).values():
        shape = ref.shape if ref.rows is None else (ref.rows[1] - ref.rows[0], *ref.shape[1:])
        _add(sources, ref, shape, _random(replace(ref, shape=shape), dtype))
    return _write(folder, config, spec, sources)


_REPORT = "it cannot be built by backend pulsar2"


def _index(order: Order) -> LockIndex:
    if order.stored is not None:
        raise AxzooError("backend pulsar2 does not take calibrated weights yet: use rounding nearest")
    index = order.index()
    if not index.config:
        raise AxzooError("the lock has no config.json, because an older axzoo wrote it: lock the checkpoint again")
    return index


def _config(index: LockIndex, family: Family, layers: Sequence[int], host_scales: bool) -> dict[str, Any]:
    """The model's config.json with only some of its layers."""
    count, number = index.spec.num_hidden_layers, len(layers)
    config = {key: _cut(key, value, layers, count) for key, value in index.config.items() if key not in _DROPPED}
    config[family.CONFIG_KEYS.names.get("num_hidden_layers", "num_hidden_layers")] = number
    if "scale_depth" in family.CONFIG_KEYS.own:  # divided by the root of the number of layers
        given = config.get("scale_depth")
        config["scale_depth"] = (1 if given is None else given) * math.sqrt(number / count)
    if "scale_emb" in family.CONFIG_KEYS.own and (host_scales or layers[0]):
        config["scale_emb"] = 1
    return config


def _cut(key: str, value: Any, layers: Sequence[int], count: int) -> Any:
    """The entries of these layers, if the value has one per layer."""
    if isinstance(value, list) and (len(value) == count or (key in _PER_LAYER and len(value) > count)):
        return [value[layer] for layer in layers]
    return value


def _tiny_vocabulary(config: dict[str, Any], family: Family) -> dict[str, Any]:
    """The config with VOCABULARY tokens, and ids of special tokens among them."""
    sizes = dict.fromkeys(("vocab_size", family.CONFIG_KEYS.names.get("vocab_size", "vocab_size")), VOCABULARY)
    ids = {
        key: _TOKEN_IDS.get(key, 0) for key, value in config.items() if key.endswith("_token_id") and value is not None
    }
    return {**config, **{key: size for key, size in sizes.items() if key in config}, **ids}


def _spec_of(config: Mapping[str, Any], index: LockIndex, folder: Path) -> DecoderSpec:
    from axzoo.model.reading import spec_of  # unfollowed: only checks the slice

    return spec_of(config, folder / "config.json", index.ignored.get("config_keys", ()))


def _require_same_layer(found: LayerSpec, order: Order, first: int | None) -> None:
    """Raises AxzooError when a slice's layer differs from the order's."""
    wanted = order.spec
    if order.recipe.embedding_scale == "host":
        wanted = replace(wanted, input_scale=1.0)
    scales = ("input_scale", "residual_scale")
    if all(math.isclose(getattr(found, key), getattr(wanted, key), rel_tol=_CLOSE) for key in scales):
        found = replace(found, **{key: getattr(wanted, key) for key in scales})
    if found != wanted:
        differing = [key for key in wanted.__dataclass_fields__ if getattr(found, key) != getattr(wanted, key)]
        raise AxzooError(
            f"{order.part.name} cannot be compiled by itself: its {', '.join(differing)} would differ, because they "
            f"depend on its place in the model: {_REPORT}"
        )


@dataclass(frozen=True)
class _Rows:
    """Consecutive rows of a tensor, from `start`."""

    start: int
    shape: tuple[int, ...]
    read: Blocks


def _add(sources: dict[str, list[_Rows]], ref: TensorRef, shape: tuple[int, ...], read: Blocks) -> None:
    sources.setdefault(ref.name, []).append(_Rows(ref.rows[0] if ref.rows else 0, shape, read))


def _reader(order: Order, role: str) -> Blocks:
    return lambda: order.read(role)


def _dtype_of(read: Blocks) -> np.dtype[Any]:
    return next(iter(read())).dtype


def _random(ref: TensorRef, dtype: np.dtype[Any]) -> Blocks:
    """Reproducible values: around 1 for norms, small for everything else."""

    def blocks() -> Iterator[NDArray[Any]]:
        generator = np.random.default_rng(zlib.crc32(ref.name.encode()))
        width = math.prod(ref.shape[1:])
        step = max(1, BLOCK_BYTES // (4 * width))
        for start in range(0, ref.shape[0], step):
            shape = (min(step, ref.shape[0] - start), *ref.shape[1:])
            values = generator.standard_normal(shape, np.float32)
            is_norm = len(ref.shape) == 1 and not ref.name.endswith("bias")
            yield (1 + values * np.float32(0.1) if is_norm else values * np.float32(0.02)).astype(dtype)

    return blocks


def _write(folder: Path, config: Mapping[str, Any], spec: DecoderSpec, sources: Mapping[str, list[_Rows]]) -> Slice:
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    names = {dtype: name for name, dtype in DTYPES.items()}
    tensors = []
    for name, rows in sources.items():
        pieces = sorted(rows, key=lambda piece: piece.start)
        ends = [piece.start + piece.shape[0] for piece in pieces]
        assert [piece.start for piece in pieces] == [0, *ends[:-1]], name
        shape = (ends[-1], *pieces[0].shape[1:])
        tensors.append(StreamedTensor(name, names[_dtype_of(pieces[0].read)], shape, _joined(pieces)))
    write_streamed(folder / "model.safetensors", tensors)
    return Slice(folder, spec)


def _joined(pieces: Sequence[_Rows]) -> Blocks:
    return lambda: (block for piece in pieces for block in piece.read())
