"""Compiler backends. The built-in `host` writes standard ONNX; installed packages can add others.

A backend is a package in `axzoo.backends`, or an entry point in the group `axzoo.backends` of an installed package.
Both provide an attribute BACKEND. Snakemake imports backends while it plans, so imports that only jobs need belong
inside methods.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from axzoo.core.errors import AxzooError
from axzoo.core.fingerprint import fingerprint
from axzoo.parts.groups import ShapeGroup
from axzoo.parts.kind import PartId, PartKind, RowReader
from axzoo.parts.lock_index import LockIndex
from axzoo.weights.recipe import Recipe

if TYPE_CHECKING:
    from axzoo.parts.part import Part  # unfollowed: only a type
    from axzoo.weights.stored import StoredWeight  # unfollowed: only a type

DEFAULT = "host"
_GROUP = "axzoo.backends"


@dataclass(frozen=True)
class Order:
    """One part to compile for `chip`, into the file `output`.

    The part's kind defines `spec`. `shapes` and `read` provide the checkpoint's tensors by role. If calibration has
    already quantized the matrices, `stored` contains them by role. `index` reads what the lock says of the whole model,
    for compilers that take a checkpoint instead of a spec.
    """

    part: PartId
    spec: Any
    recipe: Recipe
    chip: str
    shapes: Mapping[str, tuple[int, ...]]
    read: RowReader
    stored: Mapping[str, StoredWeight] | None
    output: Path
    index: Callable[[], LockIndex]


@dataclass(frozen=True)
class LockedFile:
    """A compiled file, the locked part that it should hold, and the weight type that the recipe gives its matrices."""

    path: Path
    part: Part
    weight_type: str


@dataclass(frozen=True)
class Needs:
    """The memory (MB) and time limit (minutes) that a job requests."""

    mem_mb: int
    minutes: int


ASSUMED_PARAMETERS = 9_000_000_000
"""For matrix entries without `sizes`."""

_START_MINUTES = 10


def job_minutes(parameters: int | None, seconds_per_million: float) -> int:
    """The time limit of a job that processes so many parameters; None if their number is unknown."""
    known = ASSUMED_PARAMETERS if parameters is None else parameters
    return _START_MINUTES + math.ceil(known / 1e6 * seconds_per_million / 60)


class Backend(ABC):
    """A compiler.

    `runs_here` is true if axzoo's engine can run the compiled files, that is, if they are ONNX in the host backend's
    container. Checks, `axzoo run` and `axzoo serve` need it. `takes_compiler` is true if the matrix key `compiler` says
    which tool to run, and how. `proves_weights` is true if `weight_verdicts` compares files with their checkpoint,
    which is the check of builds that do not run here.
    """

    name: ClassVar[str]
    runs_here: ClassVar[bool]
    takes_compiler: ClassVar[bool] = False
    proves_weights: ClassVar[bool] = False

    def settings(self, compiler: str | Mapping[str, Any] | None) -> str:
        """The settings for `configured`, from the value of the matrix key `compiler` or the option `--compiler`; None
        if neither is given. Called while Snakemake plans, so it runs no tool. Raises AxzooError when it is not valid.
        """
        if compiler is not None:
            raise AxzooError(f"backend {self.name} takes no compiler: omit it, or choose another backend")
        return ""

    def configured(self, settings: str) -> Self:
        """The backend with these settings. Jobs get them as one argument, so they have no other source of them."""
        return self

    def job_settings(self) -> str:
        """The settings for jobs, which may run on other machines: a backend that runs a tool adds which one it must be.
        Called while Snakemake plans."""
        return ""

    def doctor(self, chip: str, folder: Path) -> Iterator[tuple[str, str]]:
        """Yields what `axzoo doctor` says as (subject, finding). Raises AxzooError at the first thing that does not
        work. `folder` is private and initially empty."""
        yield "compiler", f"backend {self.name} needs no external compiler"

    def weight_verdicts(self, files: Sequence[LockedFile], checkpoint: Path) -> Mapping[str, Mapping[str, Any]]:
        """Compares the weights in all files of a build with those of the locked checkpoint, which is in the folder
        `checkpoint`. Returns a verdict for each file name, as plain JSON values: `faults` say where they differ,
        `unknown` what cannot be compared. Raises AxzooError when a file is damaged, or the checkpoint changed since it
        was locked."""
        raise AxzooError(f"backend {self.name} cannot compare its files with a checkpoint")

    @abstractmethod
    def identity(self, kind: PartKind, chip: str) -> dict[str, Any]:
        """Everything that determines the compiled files of a kind, other than the part's spec, tensors and recipe:
        code, tool and version, options, environment. Plain JSON values; they become part of store keys and Snakemake
        params."""

    @abstractmethod
    def refusal(self, model_type: str, chip: str, recipe: Recipe) -> str | None:
        """The reason why this backend cannot build the model, or None. Called while Snakemake plans."""

    @abstractmethod
    def needs(self, kind: PartKind, recipe: Recipe, parameters: int | None, parts: int = 1) -> Needs:
        """The resources of a job that compiles `parts` parts with `parameters` parameters each, one after the other.
        `parameters` is None if the size is unknown."""

    @abstractmethod
    def compile(self, orders: Iterable[Order], folder: Path) -> Iterator[Mapping[str, Any]]:
        """Compiles the orders one by one. After each, yields the facts to record about its file, as plain JSON values.

        `folder` is private to the job and initially empty; the outputs are in it. Orders hold weights in memory, so
        take the next order only when the previous one is done, unless the tool compiles several at once. Raises
        AxzooError when a part cannot be compiled.
        """

    @abstractmethod
    def contradictions(
        self, path: Path, kind: PartKind, groups: tuple[ShapeGroup, ...], chip: str, about: Mapping[str, Any]
    ) -> Iterator[str]:
        """Yields a message for each contradiction between a compiled file and its shape groups, chip or manifest entry
        `about`. Messages begin with the file's name."""


@cache
def load_backend(name: str) -> Backend:
    """Loads a backend by name. Raises AxzooError when it does not exist or cannot be imported."""
    packages = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    if name in packages:
        return _checked(importlib.import_module(f"axzoo.backends.{name}").BACKEND, name)
    from importlib.metadata import entry_points  # slow: scans all installed packages

    plugins = {entry.name: entry for entry in entry_points(group=_GROUP)}
    if name not in plugins:
        known = ", ".join([*packages, *sorted(plugins)])
        raise AxzooError(f"unknown backend {name!r:.80}; known backends: {known}")
    try:
        loaded = plugins[name].load()
    except Exception as error:  # third-party modules may raise anything
        raise AxzooError(f"backend {name} ({plugins[name].value}) cannot be imported: {error!r:.200}") from None
    return _checked(getattr(loaded, "BACKEND", loaded), name)


def _checked(backend: Any, name: str) -> Backend:
    if not isinstance(backend, Backend) or backend.name != name:
        raise AxzooError(f"backend {name}: its BACKEND is not an axzoo.backends.Backend with that name")
    return backend


@cache  # a backend may run its tool to learn the tool's version
def _identity(backend: Backend, kind: PartKind, chip: str) -> dict[str, Any]:
    try:
        return backend.identity(kind, chip)
    except AxzooError:
        raise
    except Exception as error:  # any exception of another package's code
        raise AxzooError(f"backend {backend.name} has no identity for chip {chip}: {error!r:.200}") from None


def compiler_identity(kind: PartKind, recipe: Recipe, backend: Backend, chip: str) -> dict[str, Any]:
    """What determines a part's file other than its spec, tensors and recipe: axzoo's own code or the backend."""
    if kind.code is not None:
        return {"code": fingerprint(kind.code)}
    identity = {"backend": backend.name, **_identity(backend, kind, chip)}
    if kind.is_calibrated(recipe):
        identity["rounder"] = fingerprint("axzoo.calibrate.rounding")
    return identity
