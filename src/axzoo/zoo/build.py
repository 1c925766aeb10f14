"""One build of the matrix - a model, a chip, a recipe - with the paths and file names it has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from axzoo.fetch.selection import belongs
from axzoo.recipe import Recipe
from axzoo.zoo.fit import Memory
from axzoo.zoo.sources import FolderSource, Source

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
    source: Source
    model_config: str | None
    recipe: Recipe
    prompt: str
    chat: bool
    expect: str | None
    ignore_config_keys: tuple[str, ...]

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
        return self.source, self.model_type, self.num_hidden_layers, self.model_config, self.ignore_config_keys

    @property
    def checkpoint(self) -> Path:
        """The fetched checkpoint; all builds of a model share it."""
        return RESULTS / "checkpoints" / self.model

    @property
    def locks(self) -> Path:
        """The model's lock files; all builds of a model share them."""
        return RESULTS / "locks" / self.model

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
        if self.recipe.prefill_len:
            return f"{self.model_type}_p{self.recipe.prefill_len}_l%d_together.axmodel"
        return f"{self.model_type}_l%d.axmodel"

    @property
    def layer_files(self) -> tuple[str, ...]:
        return tuple(self.layer_template % layer for layer in range(self.num_hidden_layers))

    @property
    def post_file(self) -> str:
        return f"{self.model_type}_post.axmodel"

    @property
    def embed_file(self) -> str:
        return "model.embed_tokens.weight.bfloat16.bin"

    @property
    def compiled_files(self) -> list[str]:
        """Layers in order, post layer, embedding, with the bundle's folder."""
        return [str(self.bundle / name) for name in (*self.layer_files, self.post_file, self.embed_file)]

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
        return sorted(str(path) for path in folder.glob("*") if belongs(path.name) or path.suffix == ".gguf")

    @property
    def model_config_files(self) -> list[str]:
        """The file whose keys override config.json's, where the entry names one: the lock depends on it."""
        return [] if self.model_config is None else [self.model_config]

    @property
    def model_config_arguments(self) -> list[str]:
        return [] if self.model_config is None else ["--model_config", self.model_config]

    @property
    def layer_arguments(self) -> list[str]:
        """The recipe of a layer as arguments of `axzoo layer`."""
        return ["--weight_type", self.recipe.weight_type, *self._shape_arguments]

    @property
    def post_arguments(self) -> list[str]:
        """The recipe of the post layer as arguments of `axzoo post`."""
        recipe = self.recipe
        return ["--post_weight_type", recipe.post_weight_type, "--hidden_state_type", recipe.hidden_state_type]

    @property
    def bundle_arguments(self) -> list[str]:
        """The recipe as arguments of `axzoo bundle`."""
        raw = [] if self.chat else ["--raw"]
        return [*raw, "--post_weight_type", self.recipe.post_weight_type, *self.layer_arguments]

    @property
    def expect_arguments(self) -> list[str]:
        return [] if self.expect is None else ["--expect", self.expect]

    @property
    def _shape_arguments(self) -> list[str]:
        recipe = self.recipe
        lengths = ["--prefill_len", str(recipe.prefill_len), "--kv_cache_len", str(recipe.kv_cache_len)]
        past = ["--last_kv_cache_len", *map(str, recipe.last_kv_cache_len)] if recipe.last_kv_cache_len else []
        return ["--hidden_state_type", recipe.hidden_state_type, *lengths, *past]
