"""A product with integer weights, and what computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.fast.parts import Parts


@dataclass(frozen=True)
class Product:
    """input [1, n, in_features] x the dequantized weights -> output.

    codes [in_features, out_features] of int8 or int4, scales [groups, out_features], each for in_features / groups
    consecutive rows of codes. `is_normed` where a norm made the input.
    """

    input: str
    output: str
    codes: NDArray[Any]
    scales: NDArray[np.float32]
    is_normed: bool = False


@dataclass(frozen=True)
class Kernel:
    """A way to compute products: whether it serves in_features in so many groups, and the nodes that do it."""

    fits: Callable[[int, int], bool]
    multiply: Callable[[Parts, Product], None]
