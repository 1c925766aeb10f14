"""The vision model of multimodal families: in one file, or as tower and resampler in two."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo.model.families import VISION_MODEL_TYPES
from axzoo.model.spec import DecoderSpec, VisionSpec
from axzoo.parts.groups import ShapeGroup
from axzoo.parts.image_groups import vision_groups
from axzoo.parts.kind import CompiledFiles, ModelOutline, PartId, PartKind
from axzoo.weights.formats import layer_storage  # unfollowed: describes files
from axzoo.weights.recipe import Recipe

if TYPE_CHECKING:
    from axzoo.model.families import Family
    from axzoo.model.spec import TensorRef

_ASSUMED_PARAMETERS = 450_000_000
"""Of entries whose `sizes` do not name the vision model: that of MiniCPM-V 2.0, rounded up."""

PROMPT_FORMAT = "minicpm"
"""The format of prompts with pictures, for tokenizers without a chat template."""

_TOWER_SHARE = 10
"""A resampler has less than a tenth of the vision model's parameters."""


class Vision(PartKind):
    """Tower and resampler in one file: an RGB image in, the embedding rows that replace it out."""

    name = "vision"
    label = "building vision model"
    checks = ("check_vision",)
    priority = 2
    stages: tuple[str, ...] = ("tower", "resampler")
    file_stem = "vpm_resampler"
    config_key = "filename_vpm_resampler_axmodel"

    def ids(self, model: ModelOutline) -> tuple[PartId, ...]:
        return (PartId(self.name),) if model.model_type in VISION_MODEL_TYPES else ()

    def is_built(self, recipe: Recipe) -> bool:
        return recipe.vpm_two_stage == (len(self.stages) == 1)

    def stem(self, model_type: str, recipe: Recipe) -> str:
        return ""

    def tail(self, recipe: Recipe, index: int | str | None = None) -> str:
        return f"{self.file_stem}{self.suffix}"

    def spec(self, model: DecoderSpec, index: int | None) -> VisionSpec:
        assert model.vision is not None
        return model.vision

    def read_spec(self, data: Mapping[str, Any]) -> VisionSpec:
        return VisionSpec.from_dict(dict(data))

    def tensors(self, family: Family, model: DecoderSpec, index: int | None) -> Mapping[str, TensorRef]:
        from axzoo.model.vision_positions import resampler_tensors, tower_tensors

        spec = self.spec(model, index)
        of_stage = {"tower": tower_tensors, "resampler": resampler_tensors}
        return {role: ref for stage in self.stages for role, ref in of_stage[stage](spec).items()}

    def groups(self, spec: VisionSpec, recipe: Recipe) -> tuple[ShapeGroup, ...]:
        return vision_groups(spec, self.stages, recipe)

    def choices(self, recipe: Recipe) -> dict[str, Any]:
        return recipe.for_vision()

    def weight_type(self, recipe: Recipe) -> str:
        return recipe.weight_type

    def storage(self, recipe: Recipe) -> dict[str, Any]:
        return {**layer_storage(recipe), "rounding": "nearest"}  # gptq applies to decoder layers only

    def parameters(self, sizes: Mapping[str, int]) -> int:
        return sizes.get("vision", _ASSUMED_PARAMETERS)

    def paths(self, files: CompiledFiles) -> tuple[Path, ...]:
        path = files.vision_files.get(self.name)
        return () if path is None else (path,)

    def config(self, model: DecoderSpec, recipe: Recipe) -> dict[str, Any]:
        size = {"vpm_width": recipe.image_size, "vpm_height": recipe.image_size}
        spec = self.spec(model, None)
        slices = {"max_slice_nums": spec.max_slice_nums, "scale_resolution": spec.scale_resolution}
        prompt = {"prompt_format": PROMPT_FORMAT, "vpm_queries": spec.queries}
        files = {self.config_key: self.tail(recipe), "vpm_two_stage": int(recipe.vpm_two_stage)}
        return {**files, **size, **slices, **prompt}


class Encoder(Vision):
    """The tower of the two-stage form: an RGB image in, one row per patch out."""

    name = "encoder"
    stages = ("tower",)
    file_stem = "vpm_encoder"
    config_key = "filename_vpm_encoder_axmodel"


class Resampler(Vision):
    """The resampler of the two-stage form: the tower's rows in, the embedding rows out."""

    name = "resampler"
    stages = ("resampler",)

    def parameters(self, sizes: Mapping[str, int]) -> int:
        return super().parameters(sizes) // _TOWER_SHARE
