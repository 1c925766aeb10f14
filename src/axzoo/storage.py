"""How a bundle's parts were stored, said in full: a file's own header leaves out what is at its default."""

from __future__ import annotations

from typing import Any

from axzoo.recipe import INTEGER_WEIGHT_TYPES, Recipe

LARGEST = "max_abs"
"""The scale rule |w| over the largest code (127 in s8) of a row's largest weight w."""


def layer_storage(recipe: Recipe) -> dict[str, Any]:
    """Of every weight matrix of a decoder layer; a float type has no scales."""
    scaled = {"weight_group_size": recipe.weight_group_size, "scale_rule": recipe.scale_rule}
    return {**(scaled if recipe.weight_type in INTEGER_WEIGHT_TYPES else {}), "rounding": recipe.rounding}


def post_storage(recipe: Recipe) -> dict[str, Any]:
    """Of lm_head, whose rule is its own, whatever the layers' is."""
    scaled = {"weight_group_size": 0, "scale_rule": LARGEST}
    is_float = recipe.post_weight_type in ("bf16", "fp32")
    return {**({} if is_float else scaled), "rounding": Recipe.rounding}


def embedding_storage() -> dict[str, Any]:
    return {"weight_type": "bf16", "rounding": Recipe.rounding}
