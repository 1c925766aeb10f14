"""The part kinds, one module each. A new kind needs a module and an entry in KINDS."""

from __future__ import annotations

from axzoo.core.errors import AxzooError
from axzoo.parts.kind import PartId, PartKind
from axzoo.parts.kinds.embed import Embed
from axzoo.parts.kinds.layer import Layer
from axzoo.parts.kinds.post import Post

KINDS: tuple[PartKind, ...] = (Layer(), Post(), Embed())
"""Every kind, in the order in which bundles list their files."""


def kind_of(name: str) -> PartKind:
    """The kind with this name. Raises AxzooError when it does not exist."""
    for kind in KINDS:
        if kind.name == name:
            return kind
    raise AxzooError(f"unknown part kind {name!r:.80}: use one of {', '.join(kind.name for kind in KINDS)}")


def part_ids(num_hidden_layers: int) -> tuple[PartId, ...]:
    """All parts of a model with `num_hidden_layers` layers, ordered by kind."""
    return tuple(part for kind in KINDS for part in kind.ids(num_hidden_layers))
