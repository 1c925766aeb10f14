"""How MiniCPM-V cuts a large picture: a reduced copy of the whole, and a grid of slices in nearly full resolution.

Sizes are (height, width) in pixels. Definition: image_processing_minicpmv.py of openbmb/MiniCPM-V-2 (slice_image).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GRID_LIMIT = 70
"""The largest number of patches per side. Patch (row, column) has the position id row * GRID_LIMIT + column."""

Size = tuple[int, int]

_LARGEST_RATIO = 4.5
"""Slices with a larger ratio of sides are not built: they would exceed GRID_LIMIT patches."""


@dataclass(frozen=True)
class Slicing:
    """`overview` is the size of the reduced copy. `refined` is the size to which the picture is resized before it is
    cut into `rows` x `columns` equal slices; without slices, both are 0."""

    overview: Size
    refined: Size
    rows: int = 0
    columns: int = 0

    @property
    def slice_size(self) -> Size:
        return self.refined[0] // self.rows, self.refined[1] // self.columns


def slicing(size: Size, max_slice_nums: int, scale_resolution: int, patch_size: int) -> Slicing:
    """The sizes for a picture of `size`. Its sides must not be 0."""
    height, width = size
    wanted = min(math.ceil(width * height / scale_resolution**2), max_slice_nums)
    if wanted <= 1:
        return Slicing(_fitted(size, scale_resolution, patch_size, enlarge=True), (0, 0))
    rows, columns = _grid(width / height, wanted, max_slice_nums)
    cell = _multiple(height, rows) / rows, _multiple(width, columns) / columns
    slice_height, slice_width = _fitted(cell, scale_resolution, patch_size, enlarge=True)
    overview = _fitted(size, scale_resolution, patch_size)
    return Slicing(overview, (slice_height * rows, slice_width * columns), rows, columns)


def slice_sizes(scale_resolution: int, patch_size: int) -> list[Size]:
    """All sizes that `slicing` can return for overviews and slices whose sides differ at most by _LARGEST_RATIO."""
    sizes = set()
    shortest, longest = (int(scale_resolution * ratio**0.5) for ratio in (1 / _LARGEST_RATIO, _LARGEST_RATIO))
    for height in range(shortest, longest + 1):
        widths = (scale_resolution**2 * height / (height + i) ** 2 for i in (0, 1))
        largest, smallest = (int(width) for width in widths)
        for width in range(smallest, largest + 1):
            sizes.add((_multiple(height, patch_size), _multiple(width, patch_size)))
    return sorted(sizes)


def _grid(ratio: float, wanted: int, most: int) -> tuple[int, int]:
    """The grid (rows, columns) of `wanted` slices, or one more or fewer, whose shape is closest to `ratio`, the
    picture's width divided by its height."""
    counts = [count for count in (wanted - 1, wanted, wanted + 1) if 1 < count <= most]
    grids = [(count // columns, columns) for count in counts for columns in range(1, count + 1) if count % columns == 0]
    return min(grids, key=lambda grid: abs(math.log(ratio) - math.log(grid[1] / grid[0])))


def _fitted(size: tuple[float, float], resolution: int, patch_size: int, enlarge: bool = False) -> Size:
    """A size with the same ratio and about resolution ** 2 pixels, its sides multiples of `patch_size`. A smaller
    picture keeps its size unless `enlarge`."""
    height, width = size
    if width * height > resolution**2 or enlarge:
        ratio = width / height
        height = int(resolution / math.sqrt(ratio))
        width = int(height * ratio)
    return _multiple(height, patch_size), _multiple(width, patch_size)


def _multiple(length: float, step: int) -> int:
    """The nearest multiple of `step`, at least one."""
    return max(round(length / step) * step, step)
