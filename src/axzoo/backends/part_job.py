"""Building parts of a bundle: from their lock files, through the store, into the bundle."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.backends import Backend, Order, compiler_identity, load_backend
from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.tensors import Checkpoint
from axzoo.core.console import SUCCESS
from axzoo.core.errors import AxzooError
from axzoo.core.files import write_json
from axzoo.fetch.sources import checkpoint_folder
from axzoo.parts.kind import PartKind
from axzoo.parts.kinds import kind_of
from axzoo.parts.part import Part, read_part, verified_blocks
from axzoo.parts.receipt import Receipt
from axzoo.store import Entry, Store, content_key, link
from axzoo.weights.recipe import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartFile:
    """Where one part comes from and where it goes: `lock` is its lock file; `receipt` is written last and describes
    `output`."""

    lock: Path
    output: Path
    receipt: Path


@dataclass(frozen=True)
class PartJob:
    """Parts to build alike. `source` is the checkpoint's fetch receipt, `calibration` the folder of `axzoo calibrate`
    where the recipe's rounding needs it."""

    files: Sequence[PartFile]
    source: Path
    store: Path
    recipe: Recipe
    backend: str
    chip: str
    calibration: Path | None = None


@dataclass(frozen=True)
class _Wanted:
    """A part that the store lacks."""

    file: PartFile
    part: Part
    kind: PartKind
    key: str
    states: Any

    def path(self, folder: Path) -> Path:
        """Where the file is made, in the job's own folder."""
        return folder / f"{self.part.id.name}{self.kind.suffix}"


def build_parts(job: PartJob) -> None:
    """Links every part of the job from the store, after compiling those that are not there yet.

    A finished part is in the store before the next one begins, so a killed job goes on where it was. Raises AxzooError
    when calibration is missing or superfluous, and when a part cannot be compiled.
    """
    backend, store = load_backend(job.backend), Store(job.store)
    wanted = []
    for file in job.files:
        asked = _ask(job, file, backend)
        entry = store.find(asked.key)
        if entry is None:
            wanted.append(asked)
        else:
            _finish(asked, entry, "reused")
    if wanted:
        with store.workspace() as folder:
            for asked, path, about in _make(job, wanted, backend, folder):
                _finish(asked, store.adopt(asked.key, path, about, asked.part.id.to_dict()), "built")


def _ask(job: PartJob, file: PartFile, backend: Backend) -> _Wanted:
    """The part of a lock file, and the key of everything that determines its file."""
    part = read_part(file.lock)
    kind = kind_of(part.id.kind)
    states = _states(job, part, kind)
    determinants = {
        "part": kind.name,
        "spec": part.spec,
        "tensors": {role: tensor.blake3 for role, tensor in part.tensors.items()},
        "recipe": kind.choices(job.recipe),
        "compiler": compiler_identity(kind, job.recipe, backend, job.chip),
        **({} if states is None else {"calibration": states.sha256}),
    }
    return _Wanted(file, part, kind, content_key(determinants), states)


def _states(job: PartJob, part: Part, kind: PartKind) -> Any:
    """The recorded hidden states that calibrate the part, None where its recipe needs none."""
    if not kind.is_calibrated(job.recipe):
        if job.calibration is not None:
            raise AxzooError(f"rounding {job.recipe.rounding} takes no --calibration: omit it, or choose rounding gptq")
        return None
    if job.calibration is None:
        raise AxzooError(f"rounding {job.recipe.rounding} needs --calibration: the folder of `axzoo calibrate`")
    from axzoo.calibrate.states import find_states, states_file

    return find_states(job.calibration / states_file(part.id))


def _make(
    job: PartJob, wanted: Sequence[_Wanted], backend: Backend, folder: Path
) -> Iterator[tuple[_Wanted, Path, Mapping[str, Any]]]:
    """Compiles each part into a file of `folder`; gives the part, its file and what is known about it."""
    checkpoint = open_checkpoint(checkpoint_folder(job.source))
    for asked in wanted:
        if asked.kind.code is not None:
            path = asked.path(folder)
            with path.open("wb") as file:
                asked.kind.write(lambda role, part=asked.part: _rows(checkpoint, part, role), file)  # type: ignore[misc]
            yield asked, path, {}
    compiled = [asked for asked in wanted if asked.kind.code is None]
    orders = (_order(job, asked, checkpoint, folder) for asked in compiled)
    for asked, about in zip(compiled, backend.compile(orders, folder), strict=True):
        calibration = {} if asked.states is None else {"calibration": asked.states.description}
        yield asked, asked.path(folder), {**about, **calibration}


def _rows(checkpoint: Checkpoint, part: Part, role: str) -> Iterable[NDArray[Any]]:
    return verified_blocks(checkpoint, part.tensors[role])


def _order(job: PartJob, asked: _Wanted, checkpoint: Checkpoint, folder: Path) -> Order:
    part, spec = asked.part, asked.kind.read_spec(asked.part.spec)
    output = asked.path(folder)
    if asked.states is None:
        read, stored = lambda role: _rows(checkpoint, part, role), None
        return Order(part.id, spec, job.recipe, job.chip, part.shapes, read, stored, output)
    from axzoo.calibrate.rounding import gptq_weights

    tensors = {
        role: np.concatenate([block.astype(np.float32) for block in _rows(checkpoint, part, role)])
        for role in part.shapes
    }
    codes = gptq_weights(spec, job.recipe, tensors, asked.states.read(spec.hidden_size))
    return Order(part.id, spec, job.recipe, job.chip, part.shapes, lambda role: [tensors[role]], codes, output)


def _finish(asked: _Wanted, entry: Entry, verb: str) -> None:
    link(entry, asked.file.output)
    name = asked.file.output.name
    receipt = Receipt(asked.part.id, name, asked.key, entry.sha256, entry.size, entry.about)
    write_json(asked.file.receipt, receipt.to_dict())
    logger.log(SUCCESS, f"{verb} {asked.file.output} ({entry.size / 1e6:.1f} MB)")
