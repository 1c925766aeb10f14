"""The post layer: final norm and lm_head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo.model.spec import DecoderSpec, PostSpec
from axzoo.parts.groups import ShapeGroup, post_groups
from axzoo.parts.kind import CompiledFiles, PartKind
from axzoo.weights.formats import post_storage  # unfollowed: describes files
from axzoo.weights.recipe import Recipe

if TYPE_CHECKING:
    from axzoo.model.families import Family
    from axzoo.model.spec import TensorRef


class Post(PartKind):
    """The post layer, MODELTYPE_post.axmodel. In small models it is the longest job, so it starts first."""

    name = "post"
    label = "building llm post layer"
    priority = 1

    def tail(self, recipe: Recipe, index: int | str | None = None) -> str:
        return f"_post{self.suffix}"

    def spec(self, model: DecoderSpec, index: int | None) -> PostSpec:
        return model.post

    def read_spec(self, data: Mapping[str, Any]) -> PostSpec:
        return PostSpec.from_dict(dict(data))

    def tensors(self, family: Family, model: DecoderSpec, index: int | None) -> Mapping[str, TensorRef]:
        return family.post_tensors(model)

    def groups(self, spec: PostSpec, recipe: Recipe) -> tuple[ShapeGroup, ...]:
        return post_groups(spec, recipe)

    def choices(self, recipe: Recipe) -> dict[str, Any]:
        return recipe.for_post()

    def weight_type(self, recipe: Recipe) -> str:
        return recipe.post_weight_type

    def storage(self, recipe: Recipe) -> dict[str, Any]:
        return post_storage(recipe)

    def parameters(self, sizes: Mapping[str, int]) -> int:
        return sizes["post"]

    def paths(self, files: CompiledFiles) -> tuple[Path, ...]:
        return (files.post,)

    def config(self, model: DecoderSpec, recipe: Recipe) -> dict[str, Any]:
        return {"filename_post_axmodel": self.file_name(model.model_type, recipe)}
