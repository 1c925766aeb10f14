"""The part kinds, one module each. A new kind needs a module and an entry in KINDS."""

from __future__ import annotations

from axzoo.core.errors import AxzooError
from axzoo.parts.kind import ModelOutline, PartId, PartKind
from axzoo.parts.kinds.embed import Embed
from axzoo.parts.kinds.layer import Layer
from axzoo.parts.kinds.post import Post
from axzoo.parts.kinds.vision import Encoder, Resampler, Vision
from axzoo.weights.recipe import Recipe

KINDS: tuple[PartKind, ...] = (Layer(), Post(), Embed(), Vision(), Encoder(), Resampler())
"""Every kind, in the order in which bundles list their files."""


def kind_of(name: str) -> PartKind:
    """The kind with this name. Raises AxzooError when it does not exist."""
    for kind in KINDS:
        if kind.name == name:
            return kind
    raise AxzooError(f"unknown part kind {name!r:.80}: use one of {', '.join(kind.name for kind in KINDS)}")


def part_ids(model: ModelOutline, recipe: Recipe | None = None) -> tuple[PartId, ...]:
    """The parts of a model, ordered by kind: those that are built with `recipe`, or all that its lock describes."""
    kinds = (kind for kind in KINDS if recipe is None or kind.is_built(recipe))
    return tuple(part for kind in kinds for part in kind.ids(model))
