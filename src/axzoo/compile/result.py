"""What compiling takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from axzoo.graph.wire import Pieces

RowReader = Callable[[str], Iterable[NDArray[Any]]]
"""Gives a role's tensor as consecutive blocks of rows."""


@dataclass(frozen=True)
class Compiled:
    """A file's bytes in pieces, and what the file says of how it was made (plain JSON values).

    `about` holds the recipe's choices, without those of weight storage that are at their defaults, and "weight_errors":
    for each weight matrix the relative L2 error that storing it made.
    """

    pieces: Pieces
    about: dict[str, Any]
