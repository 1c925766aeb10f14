"""Builds parts of a bundle: reads their lock files, looks them up in the store, and compiles the missing ones."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.backends import Backend, Order, compiler_identity, load_backend
from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.tensors import Checkpoint
from axzoo.core.console import SUCCESS
from axzoo.core.errors import AxzooError
from axzoo.core.files import canonical_json, sha256_of, write_json
from axzoo.fetch.sources import checkpoint_folder
from axzoo.parts.kind import PartKind
from axzoo.parts.kinds import kind_of
from axzoo.parts.lock_index import read_index
from axzoo.parts.part import Part, read_part, verified_blocks
from axzoo.parts.receipt import Receipt, inputs_digest, states_file
from axzoo.store import Entry, Store, content_key, link
from axzoo.weights.recipe import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartFile:
    """The files of one part: its lock file, the compiled `output`, and the `receipt`, which is written last."""

    lock: Path
    output: Path
    receipt: Path


@dataclass(frozen=True)
class PartJob:
    """Parts to build with the same settings. `source` is the checkpoint's fetch receipt; `calibration` is the output
    folder of `axzoo calibrate` if the recipe's rounding needs it. `compiler` are the backend's settings."""

    files: Sequence[PartFile]
    source: Path
    store: Path
    recipe: Recipe
    backend: str
    chip: str
    calibration: Path | None = None
    compiler: str = ""


@dataclass(frozen=True)
class _Request:
    """A part to build, its store key, the digest of its inputs, and the hidden states that calibrate it, if any."""

    file: PartFile
    part: Part
    kind: PartKind
    key: str
    inputs: str
    states: Any

    def path(self, folder: Path) -> Path:
        """The path at which the file is built, in the job's private folder."""
        return folder / f"{self.part.id.name}{self.kind.suffix}"


def build_parts(job: PartJob) -> None:
    """Compiles the parts that are not in the store, then links every part from the store into the bundle.

    Each part is stored before the next one starts, so a restarted job continues where it was killed. Raises AxzooError
    when calibration is missing or not applicable, and when a part cannot be compiled.
    """
    backend, store = load_backend(job.backend).configured(job.compiler), Store(job.store)
    missing = []
    for file in job.files:
        request = _request(job, file, backend)
        entry = store.find(request.key)
        if entry is None:
            missing.append(request)
        else:
            _finish(request, store, entry, "reused")
    if missing:
        with store.workspace() as folder:
            for request, path, about in _build(job, missing, backend, folder):
                entry = store.adopt(request.key, path, about, request.part.id.to_dict())
                _finish(request, store, entry, "built")


def _request(job: PartJob, file: PartFile, backend: Backend) -> _Request:
    """Reads a part's lock file and computes its store key from everything that determines the compiled file."""
    part = read_part(file.lock)
    kind = kind_of(part.id.kind)
    states = _states(job, part, kind)
    choices, compiler = kind.choices(job.recipe), compiler_identity(kind, job.recipe, backend, job.chip)
    calibration = None if states is None else states.sha256
    determinants = {
        "part": kind.name,
        "spec": part.spec,
        "tensors": {role: tensor.blake3 for role, tensor in part.tensors.items()},
        "recipe": choices,
        "compiler": compiler,
        **({} if states is None else {"calibration": calibration}),
    }
    inputs = inputs_digest(sha256_of(file.lock), canonical_json(choices), canonical_json(compiler), calibration)
    return _Request(file, part, kind, content_key(determinants), inputs, states)


def _states(job: PartJob, part: Part, kind: PartKind) -> Any:
    """The recorded hidden states that calibrate the part; None if its recipe needs no calibration."""
    if not kind.is_calibrated(job.recipe):
        if job.calibration is not None:
            raise AxzooError(
                f"rounding {job.recipe.rounding} does not use --calibration: omit it, or use rounding gptq"
            )
        return None
    if job.calibration is None:
        raise AxzooError(
            f"rounding {job.recipe.rounding} needs --calibration: pass the output folder of `axzoo calibrate`"
        )
    from axzoo.calibrate.states import find_states

    return find_states(job.calibration / states_file(part.id))


def _build(
    job: PartJob, requests: Sequence[_Request], backend: Backend, folder: Path
) -> Iterator[tuple[_Request, Path, Mapping[str, Any]]]:
    """Builds each part as a file in `folder`. Yields the request, the file, and the facts to record about it."""
    checkpoint = open_checkpoint(checkpoint_folder(job.source))
    for request in requests:
        if request.kind.code is not None:
            path = request.path(folder)
            with path.open("wb") as file:
                request.kind.write(lambda role, part=request.part: _rows(checkpoint, part, role), file)  # type: ignore[misc]
            yield request, path, {}
    compiled = [request for request in requests if request.kind.code is None]
    orders = (_order(job, request, checkpoint, folder) for request in compiled)
    results = backend.compile(orders, folder)
    for request in compiled:
        about = next(results, None)
        if about is None or request.path(folder).is_symlink() or not request.path(folder).is_file():
            raise AxzooError(f"backend {backend.name} wrote no file for {request.part.id.name}")
        calibration = {} if request.states is None else {"calibration": request.states.description}
        yield request, request.path(folder), {**about, **calibration}


def _rows(checkpoint: Checkpoint, part: Part, role: str) -> Iterable[NDArray[Any]]:
    return verified_blocks(checkpoint, part.tensors[role])


def _order(job: PartJob, request: _Request, checkpoint: Checkpoint, folder: Path) -> Order:
    part, spec = request.part, request.kind.read_spec(request.part.spec)
    output, index = request.path(folder), partial(read_index, request.file.lock.parent)
    if request.states is None:
        read, stored = lambda role: _rows(checkpoint, part, role), None
        return Order(part.id, spec, job.recipe, job.chip, part.shapes, read, stored, output, index)
    from axzoo.calibrate.rounding import gptq_weights

    tensors = {
        role: np.concatenate([block.astype(np.float32) for block in _rows(checkpoint, part, role)])
        for role in part.shapes
    }
    codes = gptq_weights(spec, job.recipe, tensors, request.states.read(spec.hidden_size))
    return Order(part.id, spec, job.recipe, job.chip, part.shapes, lambda role: [tensors[role]], codes, output, index)


def _finish(request: _Request, store: Store, entry: Entry, verb: str) -> None:
    link(entry, request.file.output)
    store.register(request.file.receipt.parent, request.file.output.parent)
    name = request.file.output.name
    receipt = Receipt(request.part.id, name, request.key, entry.sha256, entry.size, entry.about, request.inputs)
    write_json(request.file.receipt, receipt.to_dict())
    logger.log(SUCCESS, f"{verb} {request.file.output} ({entry.size / 1e6:.1f} MB)")
