"""One build of the matrix - a model, a chip, a recipe, a backend - with the paths and file names it has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from axzoo.backends import DEFAULT, Backend, Needs, compiler_identity, load_backend
from axzoo.checkpoint.selection import is_checkpoint_file
from axzoo.core.files import canonical_json
from axzoo.fetch.sources import FolderSource, Source
from axzoo.matrix.resources import DeviceMemory, parameters, part_needs, stage_needs
from axzoo.parts.kind import PartId, PartKind
from axzoo.parts.kinds import KINDS, kind_of, part_ids
from axzoo.parts.lock_index import INDEX
from axzoo.weights.formats import is_calibrated, tag
from axzoo.weights.recipe import Recipe

RESULTS = Path("results")


@dataclass(frozen=True)
class Build:
    """One bundle to make. Folders are relative to the project's root; file names are relative to `bundle`.

    `memory` is None and `sizes` are empty where the entry does not state its sizes.
    """

    chip: str
    npu_memory_mb: int
    memory: DeviceMemory | None
    model: str
    model_type: str
    num_hidden_layers: int
    sizes: tuple[tuple[str, int], ...]
    source: Source
    model_config: str | None
    recipe: Recipe
    backend_name: str
    prompt: str
    chat: bool
    raw_prompt: bool
    expect: str | None
    ignore_config_keys: tuple[str, ...]
    calibration_text: str | None
    calibration_tokens: int

    @property
    def backend(self) -> Backend:
        return load_backend(self.backend_name)

    @cached_property
    def tag(self) -> str:
        """The recipe's tag, and the backend where it is not the default one."""
        words = [tag(self.recipe), *([] if self.backend_name == DEFAULT else [self.backend_name])]
        return "-".join(words)

    @property
    def name(self) -> str:
        """The bundle's own name: Qwen2-0.5B-Instruct-w8a16."""
        return f"{self.model}-{self.tag}"

    @property
    def misfit(self) -> str | None:
        """Why the build is left out: its chip's memory does not hold it. None when it does, or nobody knows."""
        if self.memory is None or self.memory.total_mb <= self.npu_memory_mb:
            return None
        return (
            f"{self.chip} has {self.npu_memory_mb} MB, {self.name} needs {self.memory.total_mb} MB: "
            f"{self.memory.weights_mb} of weights, {self.memory.kv_cache_mb} of KV cache"
        )

    @property
    def model_facts(self) -> tuple[object, ...]:
        """What all builds of a model must agree on, since they share its checkpoint and lock."""
        of_config = self.model_type, self.num_hidden_layers, self.sizes, self.model_config, self.ignore_config_keys
        return self.source, *of_config, self.calibration_text, self.calibration_tokens

    # Folders

    @property
    def checkpoint(self) -> Path:
        """The fetched checkpoint; all builds of a model share it."""
        return RESULTS / "checkpoints" / self.model

    @property
    def locks(self) -> Path:
        """The model's lock files; all builds of a model share them."""
        return RESULTS / "locks" / self.model

    @property
    def calibration(self) -> Path:
        """What `axzoo calibrate` writes; all builds of a model share it."""
        return RESULTS / "calibration" / self.model

    @cached_property
    def bundle(self) -> Path:
        return RESULTS / self.chip / self.name

    @property
    def receipts(self) -> Path:
        return RESULTS / "receipts" / self.chip / self.name

    @property
    def checks(self) -> Path:
        return RESULTS / "checks" / self.chip / self.name

    # Parts

    @cached_property
    def parts(self) -> dict[str, PartId]:
        """The model's parts by the names of their files in the bundle, kind by kind."""
        return {self.file_name(part): part for part in part_ids(self.num_hidden_layers)}

    def file_name(self, part: PartId) -> str:
        return kind_of(part.kind).file_name(self.model_type, self.recipe, part.index)

    @cached_property
    def part_files(self) -> list[str]:
        """The parts' files with the bundle's folder."""
        return [f"{self.bundle}/{name}" for name in self.parts]

    @property
    def lost_files(self) -> list[str]:
        """Those of the parts' files that are not there, or not yet."""
        there = {path.name for path in self.bundle.iterdir()} if self.bundle.is_dir() else set[str]()
        return [f"{self.bundle}/{name}" for name in self.parts if name not in there]

    @property
    def receipt_files(self) -> list[str]:
        """One receipt for each part, in the same order."""
        return [str(self.receipts / Path(name).with_suffix(".json").name) for name in self.parts]

    @property
    def lock_files(self) -> list[str]:
        """The whole lock: the spec, and the parts' files."""
        names = [INDEX, *(part.lock_file for part in self.parts.values())]
        return [f"{self.locks}/{name}" for name in names]

    def compiler(self, kind: PartKind) -> str:
        """Everything beside lock and recipe that determines the kind's files, as JSON: a param of their jobs."""
        return canonical_json(compiler_identity(kind, self.recipe, self.backend, self.chip))

    def choices(self, kind: PartKind) -> str:
        """The recipe's choices that determine the kind's files, as JSON: `--recipe` of `axzoo compile`."""
        return canonical_json(kind.choices(self.recipe))

    # Checks

    @property
    def check_files(self) -> list[str]:
        """What the checks write; nothing where the backend's files do not run in axzoo's engine."""
        if not self.backend.runs_here:
            return []
        return [f"{self.checks}/layers.json", f"{self.checks}/generation.json"]

    # Inputs

    @property
    def source_files(self) -> list[str]:
        """For a checkpoint used in place, its files: fetching it again notices when they change."""
        if not isinstance(self.source, FolderSource):
            return []
        folder = Path(self.source.path)
        if folder.is_file():  # a GGUF
            return [self.source.path]
        return sorted(str(path) for path in folder.glob("*") if is_checkpoint_file(path.name) or path.suffix == ".gguf")

    @property
    def model_config_files(self) -> list[str]:
        """The file whose keys override config.json's, where the entry names one: the lock depends on it."""
        return [] if self.model_config is None else [self.model_config]

    @property
    def calibration_files(self) -> list[str]:
        """What layers with a calibrated rounding depend on; nothing for others."""
        return [str(self.calibration / INDEX)] if is_calibrated(self.recipe) else []

    @property
    def calibration_texts(self) -> list[str]:
        return [] if self.calibration_text is None else [self.calibration_text]

    # Resources

    @property
    def size_table(self) -> dict[str, int] | None:
        """The entry's `sizes`; None where it states none."""
        return dict(self.sizes) or None

    def needs(self, stage: str, parts: int = 1) -> Needs:
        """What a job of a stage takes; `parts` is how many parts a job builds, where the stage is a part kind."""
        sizes = self.size_table
        for kind in KINDS:
            if kind.name == stage:
                return part_needs(kind, self.recipe, self.backend, sizes, parts)
        weights = None if sizes is None else parameters(self.num_hidden_layers, sizes)
        if stage == "check_layers" and sizes is not None:  # a layer at a time, and the embedding
            return stage_needs(stage, weights, held=sizes["layer"] + sizes["post"])
        return stage_needs(stage, weights)

    # Arguments of commands

    @property
    def model_config_arguments(self) -> list[str]:
        return [] if self.model_config is None else ["--model_config", self.model_config]

    @property
    def size_arguments(self) -> list[str]:
        """`--sizes` of `axzoo lock`."""
        return ["--sizes", canonical_json(dict(self.sizes))] if self.sizes else []

    @property
    def calibration_arguments(self) -> list[str]:
        """What to calibrate with, as arguments of `axzoo calibrate`."""
        text = ["--text", *self.calibration_texts] if self.calibration_texts else []
        return [*text, "--tokens", str(self.calibration_tokens)]

    @property
    def bundle_arguments(self) -> list[str]:
        """Model, backend and the whole recipe as arguments of `axzoo bundle`."""
        recipe = canonical_json(self.recipe.to_dict())
        return ["--model", self.model, "--backend", self.backend_name, "--recipe", recipe, *self._raw(not self.chat)]

    @property
    def prompt_arguments(self) -> list[str]:
        """The prompt as arguments of both checks."""
        return [f"--prompt={self.prompt}", *self._raw(self.raw_prompt)]  # = : it may begin with a dash

    @property
    def expect_arguments(self) -> list[str]:
        return [] if self.expect is None else [f"--expect={self.expect}"]

    @staticmethod
    def _raw(raw: bool) -> list[str]:
        return ["--raw"] if raw else []
