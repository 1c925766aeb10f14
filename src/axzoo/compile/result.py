"""What compiling takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

RowReader = Callable[[str], Iterable[NDArray[Any]]]
"""Gives a role's tensor as consecutive blocks of rows."""


@dataclass(frozen=True)
class Compiled:
    """A file's bytes, and for each weight matrix the relative L2 error that storing it made."""

    data: bytes
    weight_errors: dict[str, float]
