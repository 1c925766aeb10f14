"""Building one part of a bundle: from its lock file, through the store, into the bundle."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from axzoo.backends import load_backend
from axzoo.backends.host.compiler import RowReader
from axzoo.checkpoint import open_checkpoint
from axzoo.core.console import SUCCESS
from axzoo.core.errors import AxzooError
from axzoo.core.files import write_json
from axzoo.core.fingerprint import fingerprint
from axzoo.fetch.sources import checkpoint_folder
from axzoo.model.spec import LayerSpec, PostSpec
from axzoo.parts.part import Part, read_part, verified_blocks
from axzoo.store import Store, content_key, link
from axzoo.weights.bf16 import write_embedding
from axzoo.weights.recipe import Recipe

logger = logging.getLogger(__name__)


Produce = Callable[[Part, RowReader, BinaryIO], Mapping[str, Any]]
"""Writes a part's file and returns what is to be known about it."""


@dataclass(frozen=True)
class Job:
    """Where a part comes from and where it goes.

    `lock` is the part's lock file, `source` the checkpoint's fetch receipt; `receipt` is written last and tells what
    `output` holds.
    """

    lock: Path
    source: Path
    store: Path
    output: Path
    receipt: Path


def build_layer(job: Job, recipe: Recipe, backend_name: str, calibration: Path | None = None) -> None:
    """One decoder layer's .axmodel. `calibration` is the folder of `axzoo calibrate`, whose file for this layer gptq
    rounds by; it is called as the layer's lock.

    Raises AxzooError when gptq has no calibration, or another rounding has one.
    """
    if recipe.rounding == "gptq" and calibration is None:
        raise AxzooError("rounding gptq needs --calibration: the folder of `axzoo calibrate`")
    if recipe.rounding != "gptq" and calibration is not None:
        raise AxzooError(f"rounding {recipe.rounding} takes no --calibration: leave it away, or round by gptq")
    if calibration is None:
        _build_plain_layer(job, recipe, backend_name)
    else:
        states = calibration / f"{job.lock.stem}.safetensors"
        _build_calibrated_layer(job, recipe, backend_name, states)


def _build_plain_layer(job: Job, recipe: Recipe, backend_name: str) -> None:
    backend = load_backend(backend_name)

    def produce(part: Part, read: RowReader, file: BinaryIO) -> Mapping[str, Any]:
        compiled = backend.compile_layer(LayerSpec.from_dict(dict(part.spec)), recipe, part.shapes, read)
        file.writelines(compiled.pieces)
        return compiled.about

    _build(job, {"layer": recipe.for_layers(), **_compiler(backend_name)}, produce)


def _build_calibrated_layer(job: Job, recipe: Recipe, backend_name: str, calibration: Path) -> None:
    from axzoo.calibrate.rounding import gptq_weights
    from axzoo.calibrate.states import find_states

    backend = load_backend(backend_name)
    states = find_states(calibration)

    def produce(part: Part, read: RowReader, file: BinaryIO) -> Mapping[str, Any]:
        spec = LayerSpec.from_dict(dict(part.spec))
        tensors = {role: np.concatenate([block.astype(np.float32) for block in read(role)]) for role in part.shapes}
        stored = gptq_weights(spec, recipe, tensors, states.read(spec.hidden_size))
        compiled = backend.compile_layer(spec, recipe, part.shapes, lambda role: [tensors[role]], stored)
        file.writelines(compiled.pieces)
        return {**compiled.about, "calibration": {"sha256": states.sha256, **states.origin}}

    rounder = {"calibration": states.sha256, "rounder": fingerprint("axzoo.calibrate.rounding")}
    _build(job, {"layer": recipe.for_layers(), **rounder, **_compiler(backend_name)}, produce)


def build_post(job: Job, recipe: Recipe, backend_name: str) -> None:
    """The post layer's .axmodel."""
    backend = load_backend(backend_name)

    def produce(part: Part, read: RowReader, file: BinaryIO) -> Mapping[str, Any]:
        compiled = backend.compile_post(PostSpec.from_dict(dict(part.spec)), recipe, part.shapes, read)
        file.writelines(compiled.pieces)
        return compiled.about

    _build(job, {"post": recipe.for_post(), **_compiler(backend_name)}, produce)


def build_embed(job: Job) -> None:
    """The embedding table as bf16 rows."""

    def produce(part: Part, read: RowReader, file: BinaryIO) -> Mapping[str, Any]:
        write_embedding(read("embed.weight"), file)
        return {}

    _build(job, {"embed": "bf16", "code": fingerprint("axzoo.weights.bf16")}, produce)


def _compiler(backend_name: str) -> dict[str, str]:
    return {"backend": backend_name, "code": fingerprint(f"axzoo.backends.{backend_name}.compiler")}


def _build(job: Job, determinants: Mapping[str, Any], produce: Produce) -> None:
    part = read_part(job.lock)
    digests = {role: tensor.blake3 for role, tensor in part.tensors.items()}
    key = content_key({"spec": part.spec, "tensors": digests, **determinants})
    store = Store(job.store)
    entry = store.find(key)
    verb = "reused"
    if entry is None:
        verb = "built"
        checkpoint = open_checkpoint(checkpoint_folder(job.source))

        def read(role: str) -> Iterable[NDArray[Any]]:
            return verified_blocks(checkpoint, part.tensors[role])

        entry = store.add(key, lambda file: produce(part, read, file))
    link(entry, job.output)
    receipt = {"file": job.output.name, "key": key, **asdict(entry)}
    del receipt["path"]
    write_json(job.receipt, receipt)
    logger.log(SUCCESS, f"{verb} {job.output} ({entry.size / 1e6:.1f} MB)")
