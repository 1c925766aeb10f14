"""The interface of part kinds: everything the pipeline needs to know about one kind of part.

Each kind is a module of `axzoo.parts.kinds`. Lock, plan, rules, bundle, verify, inspect, store and progress display
never list the kinds themselves, so adding a kind means adding a module there. Snakemake imports this module while it
plans: it must not import numpy, and imports that only jobs need belong inside functions.
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
"""Returns the tensor of a role as consecutive blocks of rows."""

PartSpec = Any
"""The spec of one part, a frozen dataclass that the kind defines."""


class CompiledFiles(Protocol):
    """The files of a bundle that config.json names."""

    @property
    def layers(self) -> tuple[Path, ...]: ...
    @property
    def post(self) -> Path: ...
    @property
    def embedding(self) -> Path: ...
    @property
    def vision_files(self) -> Mapping[str, Path]: ...


class ModelOutline(Protocol):
    """What is known of a model before its checkpoint is read: a build's, or a spec's properties."""

    @property
    def model_type(self) -> str: ...
    @property
    def num_hidden_layers(self) -> int: ...


@dataclass(frozen=True)
class PartId:
    """The identity of a part: its kind, and its index if a model has several parts of that kind."""

    kind: str
    index: int | None = None

    @property
    def name(self) -> str:
        """The name in lock files, calibration files and logs, such as layer_3 or post."""
        return self.kind if self.index is None else f"{self.kind}_{self.index}"

    @property
    def lock_file(self) -> str:
        """The file name of the part's lock."""
        return f"{self.name}.json"

    def to_dict(self) -> dict[str, Any]:
        """The fields that receipts, locks and manifests store."""
        return {"kind": self.kind, "index": self.index}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PartId:
        """Raises KeyError, TypeError or ValueError when `data` does not identify a part."""
        kind, index = data["kind"], data["index"]
        if not isinstance(kind, str) or not (index is None or (type(index) is int and index >= 0)):
            raise ValueError(f"not a valid part: kind {kind!r:.80}, index {index!r:.80}")
        return cls(kind, index)


class PartKind(ABC):
    """One kind of part.

    `label` is the progress display's text while parts of this kind are built, `suffix` the suffix of their files.
    `checks` names the checks that cover them. `on_device` is true if the board loads the file into NPU memory. `code`
    is None if a backend compiles the parts; otherwise axzoo writes the files itself, `code` is the module that
    determines their bytes, and a job needs `mem_mb` MB of memory and `seconds` seconds per million weights. Jobs of
    higher `priority` start first.
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

    def ids(self, model: ModelOutline) -> tuple[PartId, ...]:
        """The parts of this kind in a model; one by default, empty if the model has none."""
        return (PartId(self.name),)

    def is_built(self, recipe: Recipe) -> bool:
        """Whether builds with this recipe have the parts of this kind. Locks have those of every kind."""
        return True

    def stem(self, model_type: str, recipe: Recipe) -> str:
        """The model-specific start of the file name; "" if the name is the same for all models."""
        return model_type

    @abstractmethod
    def tail(self, recipe: Recipe, index: int | str | None = None) -> str:
        """The rest of the file name. `index` may be a placeholder: %d or a Snakemake wildcard."""

    def file_name(self, model_type: str, recipe: Recipe, index: int | str | None = None) -> str:
        """The file name in a bundle."""
        return self.stem(model_type, recipe) + self.tail(recipe, index)

    def receipt_name(self, file_name: str) -> str:
        """The name of the receipt of a file of this kind."""
        return f"{file_name.removesuffix(self.suffix)}.json"

    def variant(self, recipe: Recipe) -> str:
        """A suffix for the names of rules if the recipe changes `tail`; "" otherwise."""
        return ""

    @abstractmethod
    def spec(self, model: DecoderSpec, index: int | None) -> PartSpec:
        """The spec of the part `index`."""

    @abstractmethod
    def read_spec(self, data: Mapping[str, Any]) -> PartSpec:
        """Rebuilds a spec from the result of `dataclasses.asdict`."""

    @abstractmethod
    def tensors(self, family: Family, model: DecoderSpec, index: int | None) -> Mapping[str, TensorRef]:
        """The part's tensors in a checkpoint, by role."""

    @abstractmethod
    def choices(self, recipe: Recipe) -> dict[str, Any]:
        """The recipe fields that determine the file's bytes, as plain JSON values."""

    @abstractmethod
    def weight_type(self, recipe: Recipe) -> str:
        """The weight type of the part's matrices, a key of `axzoo.weights.formats.FORMATS`."""

    @abstractmethod
    def storage(self, recipe: Recipe) -> dict[str, Any]:
        """How the part's matrices are stored, as recorded in manifests."""

    @abstractmethod
    def parameters(self, sizes: Mapping[str, int]) -> int:
        """The number of parameters of one part, from the `sizes` of a matrix entry."""

    def paths(self, files: CompiledFiles) -> tuple[Path, ...]:
        """This kind's files that config.json names, in index order; empty if it names none."""
        return ()

    def config(self, model: DecoderSpec, recipe: Recipe) -> dict[str, Any]:
        """The keys of a bundle's config.json that describe this kind's files."""
        return {}

    def groups(self, spec: PartSpec, recipe: Recipe) -> tuple[ShapeGroup, ...]:
        """The shape groups of the file; empty if it is not a compiled graph."""
        return ()

    def is_calibrated(self, recipe: Recipe) -> bool:
        """Whether the file depends on calibration."""
        return False

    def write(self, read: RowReader, file: BinaryIO) -> None:
        """Writes the file of a kind with `code`, from the tensors that `read` returns by role."""
        raise NotImplementedError(f"a backend compiles parts of kind {self.name}")
