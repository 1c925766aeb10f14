"""The shape groups of vision models: one per image size."""

from __future__ import annotations

from axzoo.core.errors import AxzooError
from axzoo.model.slices import GRID_LIMIT, slice_sizes
from axzoo.model.spec import VisionSpec
from axzoo.parts.groups import ShapeGroup, TensorSpec
from axzoo.weights.recipe import Recipe


def vision_groups(spec: VisionSpec, stages: tuple[str, ...], recipe: Recipe) -> tuple[ShapeGroup, ...]:
    """The shape groups of a vision file, one per image size: `image_size` pixels square, then the sizes of slices."""
    if recipe.image_size % spec.patch_size or not 0 < recipe.image_size <= GRID_LIMIT * spec.patch_size:
        raise AxzooError(
            f"image_size {recipe.image_size} is not a multiple of the patch size {spec.patch_size} up to "
            f"{GRID_LIMIT * spec.patch_size}: use {max(recipe.image_size // spec.patch_size, 1) * spec.patch_size}"
        )
    sizes = {(recipe.image_size, recipe.image_size): None}
    if recipe.image_slices:
        sizes |= dict.fromkeys(slice_sizes(spec.scale_resolution, spec.patch_size))
    return tuple(vision_group(spec, stages, recipe.hidden_state_type, *size) for size in sizes)


def vision_group(spec: VisionSpec, stages: tuple[str, ...], state: str, height: int, width: int) -> ShapeGroup:
    """The group for an image of height x width pixels."""
    rows, columns = spec.grid(height, width)
    between = TensorSpec("input", state, (1, rows * columns, spec.hidden_size))
    image = TensorSpec("input", "uint8", (1, height, width, 3))
    ids = TensorSpec("pos_embed_ids", "int32", (rows * columns,))
    inputs = (image if "tower" in stages else between, *((ids,) if "resampler" in stages else ()))
    size = (1, spec.queries, spec.output_size) if "resampler" in stages else between.shape
    return ShapeGroup(inputs, (TensorSpec("output", state, size),))
