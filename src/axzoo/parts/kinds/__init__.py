"""The part kinds, one file each. To add a kind, add its file and its line here."""

from __future__ import annotations

from axzoo.core.errors import AxzooError
from axzoo.parts.kind import PartId, PartKind
from axzoo.parts.kinds.embed import Embed
from axzoo.parts.kinds.layer import Layer
from axzoo.parts.kinds.post import Post

KINDS: tuple[PartKind, ...] = (Layer(), Post(), Embed())
"""Every kind, in the order in which bundles list their files."""


def kind_of(name: str) -> PartKind:
    """The kind of that name. Raises AxzooError when there is none."""
    for kind in KINDS:
        if kind.name == name:
            return kind
    raise AxzooError(f"there is no part kind {name!r:.80}; there are {', '.join(kind.name for kind in KINDS)}")


def part_ids(num_hidden_layers: int) -> tuple[PartId, ...]:
    """Every part of a model with so many layers, kind by kind."""
    return tuple(part for kind in KINDS for part in kind.ids(num_hidden_layers))
