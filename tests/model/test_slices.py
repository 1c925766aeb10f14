"""Cutting pictures into slices, compared with recorded results of the published processor."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from axzoo.model.slices import slice_sizes, slicing


def published(width: int, height: int) -> tuple[tuple[int, int], tuple[int, int] | None, tuple[int, int]]:
    """The rules of image_processing_minicpmv.py, written again: overview (width, height), grid (columns, rows) and the
    size of a slice. Without slices the overview is enlarged to the full resolution."""
    most, side, patch = 9, 448, 14

    def whole(length: float, step: int) -> int:
        return max(round(length / step) * step, step)

    def best(w: float, h: float, grow: bool) -> tuple[int, int]:
        if w * h > side * side or grow:
            ratio = w / h
            h = int(side / math.sqrt(ratio))
            w = int(h * ratio)
        return whole(w, patch), whole(h, patch)

    area = min(math.ceil(width * height / (side * side)), most)
    if area <= 1:
        return best(width, height, True), None, (0, 0)
    grids = []
    for count in (area - 1, area, area + 1):
        if count == 1 or count > most:
            continue
        grids += [(m, count // m) for m in range(1, count + 1) if count % m == 0]
    error, grid = float("inf"), (1, 1)
    for candidate in grids:
        distance = abs(math.log(width / height) - math.log(candidate[0] / candidate[1]))
        if distance < error:
            error, grid = distance, candidate
    cell = best(whole(width, grid[0]) / grid[0], whole(height, grid[1]) / grid[1], True)
    return best(width, height, False), grid, cell


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_sizes_are_those_of_the_published_processor(width: int, height: int) -> None:
    found = slicing((height, width), 9, 448, 14)
    overview, grid, cell = published(width, height)
    assert found.overview == overview[::-1]
    assert (found.columns, found.rows) == (grid or (0, 0))
    if grid:
        assert found.slice_size == cell[::-1]
        assert found.refined == (cell[1] * grid[1], cell[0] * grid[0])


@given(st.integers(50, 5000), st.floats(0.3, 3.3))
def test_files_are_built_for_every_size_that_occurs(width: int, ratio: float) -> None:
    found = slicing((max(round(width * ratio), 1), width), 9, 448, 14)
    sizes = set(slice_sizes(448, 14))
    assert found.overview in sizes
    assert not found.rows or found.slice_size in sizes


def test_known_pictures() -> None:
    square = slicing((448, 448), 9, 448, 14)
    assert (square.overview, square.rows) == ((448, 448), 0)
    photo = slicing((1080, 1920), 9, 448, 14)
    assert (photo.rows, photo.columns) == (2, 4)
    assert all(rows % 14 == 0 and columns % 14 == 0 for rows, columns in slice_sizes(448, 14))
