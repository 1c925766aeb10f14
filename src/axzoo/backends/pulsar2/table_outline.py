"""What a vendor's weight table shows without a checkpoint: its type, and whether its first blocks are consistent.

The lengths of a file's inputs say where the first matrix starts and how many columns it has. In integer types, the sums
that follow the codes tell whether a block is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from axzoo.backends.pulsar2.row_blocks import INTEGER_TYPES, BlockLayout, layouts
from axzoo.backends.pulsar2.vendor_file import VendorFile

_MAX_COLUMNS = 1 << 20
_LIMIT_WORD = 4
"""The bytes of the constant between the first norm and the first matrix of integer types."""


@dataclass(frozen=True)
class TableOutline:
    """`layout` is that of the first matrix, which starts at byte `offset` of the table and has `blocks` consecutive
    blocks whose sums are those of their codes; `rows` are theirs. None if no block was recognized."""

    layout: BlockLayout | None
    offset: int = 0
    blocks: int = 0

    def __str__(self) -> str:
        if self.layout is None:
            return "not recognized without their checkpoint: float weights, or another layout"
        rows = self.blocks * self.layout.rows
        return (
            f"{self.layout.weight_type}, {self.layout.rows} rows per block; the first {rows} rows, from byte "
            f"{self.offset} of the table, agree with their sums"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        if self.layout is None:
            return {"weight_type": None}
        return {
            "weight_type": self.layout.weight_type,
            "rows_per_block": self.layout.rows,
            "first_matrix": {"offset": self.offset, "rows": self.blocks * self.layout.rows},
            "column_parts": self.layout.widths,
        }


def outline_table(file: VendorFile) -> TableOutline:
    """Recognizes the first matrix of a layer or post layer."""
    hidden = (file.shape("input") or (0,))[-1]
    cache = file.shape("K_cache")
    if not isinstance(hidden, int) or not 0 < hidden <= _MAX_COLUMNS:
        return TableOutline(None)
    lengths = [4 * (int(cache[1]) + 1)] if cache and len(cache) == 3 else [0]
    norms = (8 * hidden, 0)  # norms of ones are left out
    content = np.frombuffer(file.table, np.uint8)
    for start in (length + norm + _LIMIT_WORD for length in lengths for norm in norms):
        for layout in (layout for kind in INTEGER_TYPES for layout in layouts(kind, hidden)):
            if blocks := _consistent(content, layout, start):
                return TableOutline(layout, start, blocks)
    return TableOutline(None)


def _consistent(content: np.ndarray[Any, np.dtype[np.uint8]], layout: BlockLayout, start: int) -> int:
    """The number of consecutive blocks from byte `start` that agree with themselves."""
    size, count = layout.block_bytes, 0
    while start + size <= len(content):
        decoded = layout.decode(content[None, start : start + size])
        scales = decoded.scales
        same = bool((scales == scales[:, :1]).all()) and bool(np.isfinite(scales).all()) and bool((scales != 0).all())
        if not (same and decoded.consistent.all() and decoded.zeros.all()):
            break
        start, count = start + size, count + 1
    return count
