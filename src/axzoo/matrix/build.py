"""One build of the matrix - a model, a chip, a recipe - with the paths and file names it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from axzoo.checkpoint.selection import is_checkpoint_file
from axzoo.fetch.sources import FolderSource, Source
from axzoo.matrix import batches, resources
from axzoo.matrix.resources import Memory, Stage, minutes
from axzoo.weights.recipe import Recipe

RESULTS = Path("results")


@dataclass(frozen=True)
class Build:
    """One bundle to make. Folders are relative to the project's root; file names are relative to `bundle`."""

    chip: str
    npu_memory_mb: int
    memory: Memory | None  # None: the entry does not state its sizes
    model: str
    model_type: str
    num_hidden_layers: int
    sizes: tuple[int, ...]  # layer, post and kv_width, where the entry states them
    source: Source
    model_config: str | None
    recipe: Recipe
    prompt: str
    chat: bool
    raw_prompt: bool
    expect: str | None
    ignore_config_keys: tuple[str, ...]
    calibration_text: str | None
    calibration_tokens: int

    @property
    def tag(self) -> str:
        return self.recipe.tag

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

    @property
    def bundle(self) -> Path:
        return RESULTS / self.chip / self.name

    @property
    def receipts(self) -> Path:
        return RESULTS / "receipts" / self.chip / self.name

    @property
    def checks(self) -> Path:
        return RESULTS / "checks" / self.chip / self.name

    @property
    def layer_template(self) -> str:
        """The layers' file name with %d for the layer, as ax-llm's `template_filename_axmodel` wants it."""
        groups = f"_p{self.recipe.prefill_len}" if self.recipe.prefill_len else ""
        return f"{self.model_type}{groups}_l%d{self.layer_ending}.axmodel"

    @property
    def layer_ending(self) -> str:
        return batches.WITH_PREFILL if self.recipe.prefill_len else batches.DECODE_ONLY

    @property
    def layer_files(self) -> tuple[str, ...]:
        return tuple(self.layer_template % layer for layer in range(self.num_hidden_layers))

    @property
    def post_file(self) -> str:
        return f"{self.model_type}_post.axmodel"

    @property
    def embed_file(self) -> str:
        return "model.embed_tokens.weight.bfloat16.bin"

    @cached_property
    def compiled_names(self) -> frozenset[str]:
        """The names of layers and post layer, to look one up."""
        return frozenset((*self.layer_files, self.post_file))

    @cached_property
    def compiled_files(self) -> list[str]:
        """Layers in order, post layer, embedding, with the bundle's folder."""
        return [str(self.bundle / name) for name in (*self.layer_files, self.post_file, self.embed_file)]

    @property
    def lost_files(self) -> list[str]:
        """Those of the compiled files that are not there, or not yet."""
        there = {path.name for path in self.bundle.iterdir()} if self.bundle.is_dir() else set[str]()
        return [path for path in self.compiled_files if Path(path).name not in there]

    @property
    def receipt_files(self) -> list[str]:
        """One receipt for each compiled file, in the same order."""
        return [str(self.receipts / Path(name).with_suffix(".json").name) for name in self.compiled_files]

    @property
    def check_files(self) -> list[str]:
        return [str(self.checks / "layers.json"), str(self.checks / "generation.json")]

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
    def model_config_arguments(self) -> list[str]:
        return [] if self.model_config is None else ["--model_config", self.model_config]

    @property
    def layer_mem_mb(self) -> int:
        """What a job compiling layers needs. `sizes` are those of a layer and of the post layer first."""
        return resources.layer_mem_mb(self.recipe, self.sizes[0] if self.sizes else None)

    @property
    def post_mem_mb(self) -> int:
        return resources.post_mem_mb(self.recipe, self.sizes[1] if self.sizes else None)

    @property
    def check_layers_mem_mb(self) -> int:
        """Level 1 holds a layer at a time, and the embedding, which is as large as the post layer."""
        return resources.check_mem_mb(sum(self.sizes[:2]) if self.sizes else None)

    @property
    def whole_model_mem_mb(self) -> int:
        """Of level 2 and of calibration."""
        return resources.check_mem_mb(self.num_hidden_layers * self.sizes[0] + self.sizes[1] if self.sizes else None)

    def minutes(self, stage: Stage, layers: int = 1) -> int:
        """What a job of the stage may take; one that compiles takes so many `layers`."""
        if stage == "layer" and self.recipe.rounding == "gptq":
            stage = "gptq_layer"
        if not self.sizes:
            return minutes(stage, None)
        layer, post, _ = self.sizes
        of_part = {"layer": layers * layer, "gptq_layer": layers * layer, "post": post, "embed": post}
        return minutes(stage, of_part.get(stage, self.num_hidden_layers * layer + post))

    @property
    def size_arguments(self) -> list[str]:
        return ["--sizes", *map(str, self.sizes)] if self.sizes else []

    @cached_property
    def layer_arguments(self) -> list[str]:
        """The recipe of a layer as arguments of `axzoo layer`."""
        return _as_arguments(self.recipe.for_layers())

    @property
    def calibration_files(self) -> list[str]:
        """What a layer that is rounded by calibration depends on; nothing for others."""
        return [str(self.calibration / "index.json")] if self.recipe.rounding == "gptq" else []

    @property
    def calibration_folder(self) -> list[str]:
        """Where the layers' calibration is, as arguments of `axzoo layer`."""
        return ["--calibration", str(self.calibration)] if self.calibration_files else []

    @property
    def calibration_texts(self) -> list[str]:
        return [] if self.calibration_text is None else [self.calibration_text]

    @property
    def calibration_arguments(self) -> list[str]:
        """What to calibrate with, as arguments of `axzoo calibrate`."""
        return [
            *(["--text", *self.calibration_texts] if self.calibration_texts else []),
            "--tokens",
            str(self.calibration_tokens),
        ]

    @property
    def lock_files(self) -> list[str]:
        """The whole lock: the spec, and the files that tell of the model's tensors."""
        names = ["index", "embed", *(f"layer_{layer}" for layer in range(self.num_hidden_layers)), "post"]
        return [str(self.locks / f"{name}.json") for name in names]

    @property
    def post_arguments(self) -> list[str]:
        """The recipe of the post layer as arguments of `axzoo post`."""
        return _as_arguments(self.recipe.for_post())

    @property
    def bundle_arguments(self) -> list[str]:
        """The recipe as arguments of `axzoo bundle`."""
        return [*([] if self.chat else ["--raw"]), *_as_arguments(asdict(self.recipe))]

    @property
    def prompt_arguments(self) -> list[str]:
        """The prompt as arguments of both checks."""
        return [f"--prompt={self.prompt}", *(["--raw"] if self.raw_prompt else [])]  # = : it may begin with a dash

    @property
    def expect_arguments(self) -> list[str]:
        return [] if self.expect is None else [f"--expect={self.expect}"]


def _as_arguments(values: Mapping[str, Any]) -> list[str]:
    """Options with their values; what is false, 0 or empty is what an option says when it is not given."""
    words: list[str] = []
    for name, value in values.items():
        if value:
            words.append(f"--{name}")
            words += [] if value is True else map(str, value if isinstance(value, tuple) else [value])
    return words
