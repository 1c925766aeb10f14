"""Backends: who compiles. `host` writes standard ONNX; other packages may bring backends of their own.

A backend is a package of `axzoo.backends`, or an entry point of the group `axzoo.backends` that an installed package
declares; both offer an attribute BACKEND. Imported while Snakemake plans: what a job alone needs is imported inside the
method that needs it.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from axzoo.core.errors import AxzooError
from axzoo.core.fingerprint import fingerprint
from axzoo.parts.groups import ShapeGroup
from axzoo.parts.kind import PartId, PartKind, RowReader
from axzoo.weights.recipe import Recipe

if TYPE_CHECKING:
    from axzoo.weights.stored import StoredWeight

DEFAULT = "host"
_GROUP = "axzoo.backends"


@dataclass(frozen=True)
class Order:
    """One part to compile for `chip`.

    `spec` is the kind's own. `shapes` and `read` give the part's tensors by role, as the checkpoint holds them.
    `stored` gives its matrices by role where calibration has already chosen their codes. The file goes to `output`.
    """

    part: PartId
    spec: Any
    recipe: Recipe
    chip: str
    shapes: Mapping[str, tuple[int, ...]]
    read: RowReader
    stored: Mapping[str, StoredWeight] | None
    output: Path


@dataclass(frozen=True)
class Needs:
    """What a job asks of the machine that runs it."""

    mem_mb: int
    minutes: int


class Backend(ABC):
    """One compiler.

    `runs_here`: whether axzoo's engine runs the compiled files, that is, whether they are ONNX in the host backend's
    container. Checks, `axzoo run` and `axzoo serve` work only then.
    """

    name: ClassVar[str]
    runs_here: ClassVar[bool]

    @abstractmethod
    def identity(self, chip: str) -> dict[str, Any]:
        """Everything beside a part's own spec, tensors and recipe that determines its file: code, tool and version,
        options, environment; plain JSON values. It enters store keys and Snakemake's params."""

    @abstractmethod
    def refusal(self, model_type: str, chip: str, recipe: Recipe) -> str | None:
        """Why this backend cannot build that, said while Snakemake plans; None when it can."""

    @abstractmethod
    def needs(self, kind: PartKind, recipe: Recipe, parameters: int | None, parts: int = 1) -> Needs:
        """What a job takes that compiles `parts` parts of so many parameters each, one after the other; None where
        nobody knows how many."""

    @abstractmethod
    def compile(self, orders: Iterable[Order], folder: Path) -> Iterator[Mapping[str, Any]]:
        """Compiles the orders in turn; after each, yields what is known about its file, as plain JSON values.

        `folder` is empty and the job's own; the outputs are in it. Orders hold weights: take the next one when the last
        is done, unless the tool compiles several at once. Raises AxzooError when a part cannot be compiled.
        """

    @abstractmethod
    def contradictions(
        self, path: Path, kind: PartKind, groups: tuple[ShapeGroup, ...], chip: str, about: Mapping[str, Any]
    ) -> Iterator[str]:
        """Yields a sentence, beginning with the file's name, for each difference between what a compiled file declares
        and its shape groups, its chip, or its manifest entry `about`."""


@cache
def load_backend(name: str) -> Backend:
    """The backend of that name. Raises AxzooError when there is none."""
    packages = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    if name in packages:
        return _checked(importlib.import_module(f"axzoo.backends.{name}").BACKEND, name)
    from importlib.metadata import entry_points  # looks through every installed package

    plugins = {entry.name: entry for entry in entry_points(group=_GROUP)}
    if name not in plugins:
        known = ", ".join([*packages, *sorted(plugins)])
        raise AxzooError(f"there is no backend {name!r:.80}; there is {known}")
    try:
        loaded = plugins[name].load()
    except Exception as error:  # whatever a stranger's module raises
        raise AxzooError(f"backend {name} ({plugins[name].value}) cannot be imported: {error!r:.200}") from None
    return _checked(getattr(loaded, "BACKEND", loaded), name)


def _checked(backend: Any, name: str) -> Backend:
    if not isinstance(backend, Backend) or backend.name != name:
        raise AxzooError(f"backend {name}: its BACKEND is not an axzoo.backends.Backend of that name")
    return backend


def compiler_identity(kind: PartKind, recipe: Recipe, backend: Backend, chip: str) -> dict[str, Any]:
    """What determines a part's file beside its spec, tensors and recipe: axzoo's own code, or the backend."""
    if kind.code is not None:
        return {"code": fingerprint(kind.code)}
    identity = {"backend": backend.name, **backend.identity(chip)}
    if kind.is_calibrated(recipe):
        identity["rounder"] = fingerprint("axzoo.calibrate.rounding")
    return identity
