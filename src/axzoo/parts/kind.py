"""What a part kind is: one sort of piece that a model is cut into, and everything the pipeline asks about it.

A kind is one file of `axzoo.parts.kinds`. Lock, plan, rules, bundle, verify, inspect, store and progress ask the kind
and enumerate nothing, so a new sort of part is a new file there. Imported while Snakemake plans: nothing here may
import numpy, and what a job alone needs is imported inside the function that needs it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Protocol

from axzoo.parts.groups import ShapeGroup
from axzoo.weights.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from axzoo.model.families import Family
    from axzoo.model.spec import DecoderSpec, TensorRef

RowReader = Callable[[str], "Iterable[NDArray[Any]]"]
"""Gives the tensor of a role as consecutive blocks of rows."""

PartSpec = Any
"""A kind's own spec, a frozen dataclass."""


class CompiledFiles(Protocol):
    """The files of a bundle by what they do, as a host program finds them in config.json."""

    @property
    def layers(self) -> tuple[Path, ...]: ...
    @property
    def post(self) -> Path: ...
    @property
    def embedding(self) -> Path: ...


@dataclass(frozen=True)
class PartId:
    """Which part of a model: its kind, and its index where a model has several of the kind."""

    kind: str
    index: int | None = None

    @property
    def name(self) -> str:
        """layer_3, post: what locks, calibration files and logs are called."""
        return self.kind if self.index is None else f"{self.kind}_{self.index}"

    @property
    def lock_file(self) -> str:
        """The name of the part's lock file."""
        return f"{self.name}.json"

    def to_dict(self) -> dict[str, Any]:
        """As receipts, locks and manifests hold it."""
        return {"kind": self.kind, "index": self.index}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PartId:
        """Raises KeyError, TypeError or ValueError when `data` does not name a part."""
        kind, index = data["kind"], data["index"]
        if not isinstance(kind, str) or not (index is None or (type(index) is int and index >= 0)):
            raise ValueError(f"part {kind!r:.80} {index!r:.80}")
        return cls(kind, index)


class PartKind(ABC):
    """One sort of part.

    `label` is what a build shows while it makes them; `suffix` ends the names of their files. `checks` are the checks
    that cover them. `on_device`: the board loads the file into the NPU's memory. `code` is None for a kind that a
    backend compiles; otherwise axzoo writes the file itself, and this module determines its bytes, in jobs of `mem_mb`
    that take `seconds` for a million weights. Jobs of higher `priority` start first.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    suffix: ClassVar[str] = ".axmodel"
    checks: ClassVar[tuple[str, ...]] = ("check_layers", "check_generation")
    code: ClassVar[str | None] = None
    mem_mb: ClassVar[int] = 1000
    seconds: ClassVar[float] = 0.2
    priority: ClassVar[int] = 0
    on_device: ClassVar[bool] = True

    def ids(self, num_hidden_layers: int) -> tuple[PartId, ...]:
        """The parts of this kind in a model of `num_hidden_layers` layers: one, unless the kind says otherwise."""
        return (PartId(self.name),)

    def stem(self, model_type: str, recipe: Recipe) -> str:
        """How the file's name begins, which differs from model to model; "" where all models share one name."""
        return model_type

    @abstractmethod
    def tail(self, recipe: Recipe, index: int | str | None = None) -> str:
        """How the file's name ends. `index` may be a placeholder: %d, or a wildcard of Snakemake."""

    def file_name(self, model_type: str, recipe: Recipe, index: int | str | None = None) -> str:
        """The file's name in a bundle."""
        return self.stem(model_type, recipe) + self.tail(recipe, index)

    def variant(self, recipe: Recipe) -> str:
        """A word for recipes whose files end in another tail than most; "" for the others."""
        return ""

    @abstractmethod
    def spec(self, model: DecoderSpec, index: int | None) -> PartSpec:
        """What the part is, in numbers."""

    @abstractmethod
    def read_spec(self, data: Mapping[str, Any]) -> PartSpec:
        """The spec that `dataclasses.asdict` made `data` of."""

    @abstractmethod
    def tensors(self, family: Family, model: DecoderSpec, index: int | None) -> Mapping[str, TensorRef]:
        """The part's tensors in a checkpoint, by role."""

    @abstractmethod
    def choices(self, recipe: Recipe) -> dict[str, Any]:
        """The choices of a recipe that determine the file's bytes, as plain JSON values."""

    @abstractmethod
    def weight_type(self, recipe: Recipe) -> str:
        """The type the part's matrices are stored in, a name of `axzoo.weights.formats.FORMATS`."""

    @abstractmethod
    def storage(self, recipe: Recipe) -> dict[str, Any]:
        """How the part's matrices are stored, for manifests."""

    @abstractmethod
    def parameters(self, sizes: Mapping[str, int]) -> int:
        """Parameters of one part, from the `sizes` of a matrix entry."""

    def paths(self, files: CompiledFiles) -> tuple[Path, ...]:
        """The kind's files as config.json names them, in the order of their indices; none if it names none."""
        return ()

    def config(self, model: DecoderSpec, recipe: Recipe) -> dict[str, Any]:
        """The keys of a bundle's config.json that name the kind's files."""
        return {}

    def groups(self, spec: PartSpec, recipe: Recipe) -> tuple[ShapeGroup, ...]:
        """The shape groups of the file; none where it is not a compiled graph."""
        return ()

    def is_calibrated(self, recipe: Recipe) -> bool:
        """Whether the file depends on calibration."""
        return False

    def write(self, read: RowReader, file: BinaryIO) -> None:
        """Writes the file of a kind that axzoo writes itself, from the tensors that `read` gives by role."""
        raise NotImplementedError(f"a backend compiles parts of kind {self.name}")
