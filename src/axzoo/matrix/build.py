"""One build of the matrix: a model, a chip, a recipe and a backend, with its paths and file names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from axzoo.backends import DEFAULT, Backend, Needs, compiler_identity, load_backend
from axzoo.core.files import canonical_json
from axzoo.fetch.sources import Source
from axzoo.forecast.sizes import DeviceMemory, parameters, stored_bytes
from axzoo.matrix.resources import calibration_needs, level_1_weights, part_needs, stage_needs, states_mb
from axzoo.parts.kind import PartId, PartKind
from axzoo.parts.kinds import KINDS, kind_of, part_ids
from axzoo.parts.lock_index import INDEX
from axzoo.weights.formats import tag
from axzoo.weights.recipe import Recipe

RESULTS = Path("results")


@dataclass(frozen=True)
class Build:
    """One bundle to build. Folders are relative to the project's root, file names to `bundle`.

    If the entry has no `sizes`, `sizes` is empty and `memory` is None.
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
    compiler_settings: str
    prompt: str
    chat: bool
    raw_prompt: bool
    expect: str | None
    ignore_config_keys: tuple[str, ...]
    ignore_tensors: tuple[str, ...]
    calibration_text: str | None
    calibration_tokens: int
    thresholds: tuple[tuple[str, float], ...] = ()

    @property
    def backend(self) -> Backend:
        return load_backend(self.backend_name).configured(self.compiler_settings)

    @cached_property
    def tag(self) -> str:
        """The recipe's tag, followed by the backend's name if it is not the default."""
        words = [tag(self.recipe), *([] if self.backend_name == DEFAULT else [self.backend_name])]
        return "-".join(words)

    @property
    def name(self) -> str:
        """The bundle's name, such as Qwen2-0.5B-Instruct-w8a16."""
        return f"{self.model}-{self.tag}"

    @property
    def misfit(self) -> str | None:
        """The message if the build does not fit its chip's memory; None if it fits or its size is unknown."""
        if self.memory is None or self.memory.total_mb <= self.npu_memory_mb:
            return None
        return (
            f"{self.chip} has {self.npu_memory_mb} MB, {self.name} needs {self.memory.total_mb} MB: "
            f"{self.memory.weights_mb} of weights, {self.memory.kv_cache_mb} of KV cache"
        )

    @property
    def model_facts(self) -> tuple[object, ...]:
        """The settings that all builds of a model must share, because they share its checkpoint and lock."""
        of_config = self.model_type, self.num_hidden_layers, self.sizes, self.model_config
        ignored = self.ignore_config_keys, self.ignore_tensors
        return self.source, *of_config, *ignored, self.calibration_text, self.calibration_tokens

    # Folders

    @cached_property
    def checkpoint(self) -> Path:
        """The fetched checkpoint, shared by all builds of the model."""
        return RESULTS / "checkpoints" / self.model

    @cached_property
    def locks(self) -> Path:
        """The lock files, shared by all builds of the model."""
        return RESULTS / "locks" / self.model

    @cached_property
    def calibration(self) -> Path:
        """The output of `axzoo calibrate`, shared by all builds of the model."""
        return RESULTS / "calibration" / self.model

    @cached_property
    def bundle(self) -> Path:
        return RESULTS / self.chip / self.name

    @cached_property
    def receipts(self) -> Path:
        return RESULTS / "receipts" / self.chip / self.name

    @cached_property
    def bundle_receipt(self) -> Path:
        """The receipt of the bundle itself, next to the folder of its parts' receipts."""
        return RESULTS / "receipts" / self.chip / f"{self.name}.json"

    @property
    def checks(self) -> Path:
        return RESULTS / "checks" / self.chip / self.name

    # Parts

    @cached_property
    def parts(self) -> dict[str, PartId]:
        """The model's parts by file name in the bundle, ordered by kind."""
        return {self.file_name(part): part for part in part_ids(self, self.recipe)}

    def file_name(self, part: PartId) -> str:
        return kind_of(part.kind).file_name(self.model_type, self.recipe, part.index)

    @cached_property
    def part_files(self) -> list[str]:
        """The paths of the parts' files."""
        return [f"{self.bundle}/{name}" for name in self.parts]

    @cached_property
    def receipts_by_part(self) -> dict[str, str]:
        """The paths of the parts' receipts by file name in the bundle."""
        folder = str(self.receipts)
        return {name: f"{folder}/{kind_of(part.kind).receipt_name(name)}" for name, part in self.parts.items()}

    @property
    def receipt_files(self) -> list[str]:
        """The paths of the parts' receipts, in the order of `part_files`."""
        return list(self.receipts_by_part.values())

    @cached_property
    def lock_names(self) -> list[str]:
        """The names of all files of the lock: the index and one file per part."""
        return [INDEX, *(part.lock_file for part in part_ids(self))]

    @property
    def lock_files(self) -> list[str]:
        """The paths of all files of the lock."""
        folder = str(self.locks)
        return [f"{folder}/{name}" for name in self.lock_names]

    def compiler(self, kind: PartKind) -> str:
        """What determines the kind's files other than lock and recipe, as JSON: a Snakemake param of their jobs."""
        return canonical_json(compiler_identity(kind, self.recipe, self.backend, self.chip))

    def choices(self, kind: PartKind) -> str:
        """The recipe fields that determine the kind's files, as JSON, for `axzoo compile --recipe`."""
        return canonical_json(kind.choices(self.recipe))

    def job_identity(self, kind: PartKind) -> tuple[str, str]:
        """`choices` and `compiler`, determined once per kind."""
        if kind.name not in self._identities:
            self._identities[kind.name] = self.choices(kind), self.compiler(kind)
        return self._identities[kind.name]

    @cached_property
    def _identities(self) -> dict[str, tuple[str, str]]:
        return {}

    # Checks

    @property
    def check_files(self) -> list[str]:
        """The reports of the checks. Files that axzoo's engine cannot run have only their weights compared, if the
        backend can do that."""
        if not self.backend.runs_here:
            return [f"{self.checks}/weights.json"] if self.backend.proves_weights else []
        kinds = {kind_of(part.kind) for part in self.parts.values()}
        names = dict.fromkeys(check for kind in KINDS if kind in kinds for check in kind.checks)
        return [f"{self.checks}/{name.removeprefix('check_')}.json" for name in names]

    # Inputs

    @property
    def calibration_texts(self) -> list[str]:
        return [] if self.calibration_text is None else [self.calibration_text]

    # Resources

    @property
    def size_table(self) -> dict[str, int] | None:
        """The entry's `sizes`, or None."""
        return dict(self.sizes) or None

    def needs(self, stage: str, parts: int = 1) -> Needs:
        """The resources of a job of `stage`. If the stage is a part kind, `parts` is the number of parts per job."""
        sizes = self.size_table
        for kind in KINDS:
            if kind.name == stage:
                return part_needs(kind, self.recipe, self.backend, sizes, parts, self.calibration_tokens)
        weights = None if sizes is None else parameters(self, self.recipe, sizes)
        if stage == "check_vision":
            vision = [kind for kind in KINDS if stage in kind.checks and kind.is_built(self.recipe)]
            return stage_needs(stage, sum(kind.parameters(sizes or {}) for kind in vision))
        if stage == "calibrate":
            needs = calibration_needs(weights)
            return Needs(needs.mem_mb + states_mb(sizes, self.calibration_tokens), needs.minutes)
        if stage == "check_layers" and sizes is not None:
            return stage_needs(stage, weights, held=level_1_weights(sizes))
        if stage == "check_weights" and sizes is not None:
            return stage_needs(stage, weights, held=sizes["layer"] + sizes["post"] // 4)
        if stage == "check_generation" and sizes is not None:
            return stage_needs(stage, weights, held=stored_bytes(self.recipe, self, sizes))
        return stage_needs(stage, weights)

    # Arguments of commands

    @property
    def model_config_arguments(self) -> list[str]:
        return [] if self.model_config is None else ["--model_config", self.model_config]

    @property
    def ignore_arguments(self) -> list[str]:
        """The config keys and tensors to ignore, as arguments of `axzoo lock`."""
        keys = ["--ignore_config_keys", *self.ignore_config_keys] if self.ignore_config_keys else []
        return keys + (["--ignore_tensors", *self.ignore_tensors] if self.ignore_tensors else [])

    @property
    def size_arguments(self) -> list[str]:
        """The `--sizes` option of `axzoo lock`."""
        return ["--sizes", canonical_json(dict(self.sizes))] if self.sizes else []

    @property
    def calibration_arguments(self) -> list[str]:
        """The calibration settings as arguments of `axzoo calibrate`."""
        text = ["--text", *self.calibration_texts] if self.calibration_texts else []
        return [*text, "--tokens", str(self.calibration_tokens)]

    @cached_property
    def backend_arguments(self) -> list[str]:
        """The backend and its settings as arguments of `axzoo compile`."""
        settings = self.backend.job_settings()
        return ["--backend", self.backend_name, *(["--compiler", settings] if settings else [])]

    @property
    def bundle_arguments(self) -> list[str]:
        """Model, backend and the complete recipe as arguments of `axzoo bundle`."""
        recipe = canonical_json(self.recipe.to_dict())
        return ["--model", self.model, "--backend", self.backend_name, "--recipe", recipe, *self._raw(not self.chat)]

    @property
    def prompt_arguments(self) -> list[str]:
        """The prompt as arguments of both checks."""
        return [f"--prompt={self.prompt}", *self._raw(self.raw_prompt)]  # "=" because it may start with a dash

    @property
    def threshold_arguments(self) -> list[str]:
        """The entry's own thresholds as arguments of both checks."""
        return [f"--thresholds={canonical_json(dict(self.thresholds))}"] if self.thresholds else []

    @property
    def expect_arguments(self) -> list[str]:
        return [] if self.expect is None else [f"--expect={self.expect}"]

    @staticmethod
    def _raw(raw: bool) -> list[str]:
        return ["--raw"] if raw else []
