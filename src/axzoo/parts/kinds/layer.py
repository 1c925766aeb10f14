"""The decoder layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo.model.spec import DecoderSpec, LayerSpec
from axzoo.parts.groups import ShapeGroup, layer_groups
from axzoo.parts.kind import CompiledFiles, ModelOutline, PartId, PartKind
from axzoo.weights.formats import is_calibrated, layer_storage  # unfollowed: describes files
from axzoo.weights.recipe import Recipe

if TYPE_CHECKING:
    from axzoo.model.families import Family
    from axzoo.model.spec import TensorRef


class Layer(PartKind):
    """A decoder layer: MODELTYPE_p128_l7_together.axmodel, or MODELTYPE_l7.axmodel without prefill groups."""

    name = "layer"
    label = "building llm decode layers"

    def ids(self, model: ModelOutline) -> tuple[PartId, ...]:
        return tuple(PartId(self.name, index) for index in range(model.num_hidden_layers))

    def stem(self, model_type: str, recipe: Recipe) -> str:
        return f"{model_type}_p{recipe.prefill_len}" if recipe.prefill_len else model_type

    def tail(self, recipe: Recipe, index: int | str | None = None) -> str:
        return f"_l{index}_together{self.suffix}" if recipe.prefill_len else f"_l{index}{self.suffix}"

    def variant(self, recipe: Recipe) -> str:
        return "" if recipe.prefill_len else "decode"

    def spec(self, model: DecoderSpec, index: int | None) -> LayerSpec:
        assert index is not None
        return model.layer_spec(index)

    def read_spec(self, data: Mapping[str, Any]) -> LayerSpec:
        return LayerSpec.from_dict(dict(data))

    def tensors(self, family: Family, model: DecoderSpec, index: int | None) -> Mapping[str, TensorRef]:
        assert index is not None
        return family.layer_tensors(model, index)

    def groups(self, spec: LayerSpec, recipe: Recipe) -> tuple[ShapeGroup, ...]:
        return layer_groups(spec, recipe)

    def choices(self, recipe: Recipe) -> dict[str, Any]:
        return recipe.for_layers()

    def weight_type(self, recipe: Recipe) -> str:
        return recipe.weight_type

    def storage(self, recipe: Recipe) -> dict[str, Any]:
        return layer_storage(recipe)

    def is_calibrated(self, recipe: Recipe) -> bool:
        return is_calibrated(recipe)

    def parameters(self, sizes: Mapping[str, int]) -> int:
        return sizes["layer"]

    def paths(self, files: CompiledFiles) -> tuple[Path, ...]:
        return files.layers

    def config(self, model: DecoderSpec, recipe: Recipe) -> dict[str, Any]:
        template = self.file_name(model.model_type, recipe, "%d")
        return {"template_filename_axmodel": template, "axmodel_num": model.num_hidden_layers}
