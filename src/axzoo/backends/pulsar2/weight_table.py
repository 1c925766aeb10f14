"""Reads the weight table of a vendor's file: where a part's weights are, and what else there is.

The order of a table is not assumed. What the weights leave over are the table's constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from blake3 import blake3

from axzoo.backends.pulsar2.block_comparison import MISSING
from axzoo.backends.pulsar2.matrix_search import FoundMatrix, SearchedMatrix, find_matrices, runs_of_rows
from axzoo.backends.pulsar2.row_blocks import BlockError, Bytes
from axzoo.backends.pulsar2.vendor_rules import codes_of, peaks_of, scales_of
from axzoo.core.errors import AxzooError
from axzoo.parts.kind import RowReader
from axzoo.weights.scales import Floats


@dataclass(frozen=True)
class FoundVector:
    """A vector of the table, of `length` bytes. `offset` is None if it was not found, and for vectors of ones: tables
    leave them out, so nothing in the file proves them."""

    offset: int | None
    length: int
    fault: str | None = None


@dataclass(frozen=True)
class ConstantRun:
    """Bytes of the table that hold none of the weights, such as rotary tables, and their digest."""

    offset: int
    length: int
    blake3: str


@dataclass(frozen=True)
class TableReading:
    """What a table holds: matrices and vectors by role, and the rest. `faults` concern the table as a whole."""

    size: int
    matrices: Mapping[str, FoundMatrix]
    vectors: Mapping[str, FoundVector]
    constants: tuple[ConstantRun, ...]
    faults: tuple[str, ...]

    @property
    def all_faults(self) -> list[str]:
        """What differs from the given weights, with roles; empty if nothing does."""
        matrices = [f"{role} {fault}" for role, found in self.matrices.items() for fault in found.faults]
        matrices += [
            f"{role} has bytes that are not 0, but are in all known files, in {len(found.not_zero)} blocks, the first "
            f"is that of row {found.not_zero[0]}"
            for role, found in self.matrices.items()
            if found.not_zero
        ]
        vectors = [f"{role} {found.fault}" for role, found in self.vectors.items() if found.fault]
        return [*matrices, *vectors, *self.faults]

    @property
    def unknown(self) -> list[str]:
        """What could not be compared, because no published file shows how it is stored."""
        return [f"{role} {text}" for role, found in self.matrices.items() for text in found.unknown]


def read_table(table: memoryview, shapes: Mapping[str, tuple[int, ...]], read: RowReader) -> TableReading:
    """Finds the tensors that `shapes` and `read` provide by role: fp32, fp16 or bf16, finite.

    A tensor that is not in the table is a fault of the reading, not an error.
    """
    searched = find_matrices(table, shapes, read)
    found = {matrix.role: reading for matrix, reading in searched}
    claims = _claims(found)
    faults = [*_overlaps(claims), *_copies(searched, claims)]
    gaps = _gaps(claims, len(table))
    vectors = {}
    for role, shape in shapes.items():
        if len(shape) == 1:
            values = np.concatenate([np.asarray(block, np.float32) for block in read(role)])
            vectors[role] = _vector(table, gaps, values)
    taken = [(v.offset, v.offset + v.length) for v in vectors.values() if v.offset is not None]
    rest = _gaps(sorted({*claims, *taken}), len(table))
    constants = tuple(ConstantRun(start, end - start, blake3(table[start:end]).hexdigest()) for start, end in rest)
    return TableReading(len(table), found, vectors, constants, tuple(faults))


def _claims(found: Mapping[str, FoundMatrix]) -> list[tuple[int, int]]:
    """The bytes of all blocks as (start, end), ascending. Equal blocks are stored once, so several can be in one."""
    claims = {
        (int(offset), int(offset) + matrix.form.layout.block_bytes)
        for matrix in found.values()
        if matrix.form is not None
        for offset in matrix.offsets
        if offset != MISSING
    }
    return sorted(claims)


def _overlaps(claims: list[tuple[int, int]]) -> Iterator[str]:
    for (_, end), (start, _) in pairwise(claims):
        if start < end:
            yield f"blocks overlap at byte {start} of the table"
            return


def _copies(searched: Sequence[tuple[SearchedMatrix, FoundMatrix]], claims: list[tuple[int, int]]) -> Iterator[str]:
    """Places with the scales of a block that no block was found in."""
    starts = np.array([start for start, _ in claims] or [0])
    ends = np.array([end for _, end in claims] or [0])
    for matrix, found in searched:
        form = found.form
        if form is None or not form.layout.is_integer:
            continue
        for block, places in matrix.candidates.get((form.layout, form.rule), {}).items():
            index = np.searchsorted(ends, places, side="right")
            free = index == len(ends)
            free[~free] = starts[index[~free]] >= places[~free] + form.layout.block_bytes
            if free.any():
                row = block * form.layout.rows
                yield f"{matrix.role} has the block of row {row} twice, also at byte {places[free][0]} of the table"
                return


def _gaps(claims: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    gaps, end = [], 0
    for start, stop in [*claims, (size, size)]:
        if start > end:
            gaps.append((end, start))
        end = max(end, stop)
    return gaps


def _vector(table: memoryview, gaps: list[tuple[int, int]], values: Floats) -> FoundVector:
    image = np.ascontiguousarray(values, "<f4").tobytes()
    if (values == 1).all():
        return FoundVector(None, len(image))
    if not values.any():
        return FoundVector(None, len(image), "is all zeros, which cannot be told from other zeros in the file")
    places: list[int] = []
    for start, end in gaps:
        content = bytes(table[start:end])
        at = content.find(image)
        while at >= 0 and len(places) < 2:
            places.append(start + at)
            at = content.find(image, at + 1)
    if len(places) == 1:
        return FoundVector(places[0], len(image))
    return FoundVector(None, len(image), "is in the file more than once" if places else "is not in the file")


def filled(table: memoryview, reading: TableReading, read: RowReader) -> bytes:
    """The table with the weights that `read` provides in the places where `reading` found those of the same shapes.

    The weights of the reading give the same table. Raises AxzooError where no published file shows what the compiler
    would write.
    """
    if faults := reading.all_faults or reading.unknown:
        raise AxzooError(f"the table was not read completely: {faults[0]}")
    content = np.zeros(len(table), np.uint8)
    for run in reading.constants:
        content[run.offset : run.offset + run.length] = table[run.offset : run.offset + run.length]
    written: dict[int, bytes] = {}
    for role, matrix in reading.matrices.items():
        for offset, block in zip(matrix.offsets.tolist(), _encoded_blocks(role, matrix, read), strict=True):
            _write(content, written, role, offset, block)
    for role, vector in reading.vectors.items():
        values = np.concatenate([np.asarray(block, np.float32) for block in read(role)])
        if (vector.offset is None) != bool((values == 1).all()):
            raise AxzooError(f"{role} is left out of the table if it is all ones, and only one of the two is")
        if vector.offset is not None:
            _write(content, written, role, vector.offset, np.ascontiguousarray(values, "<f4").tobytes())
    if len(set(written.values())) < len(written):
        raise AxzooError("two blocks of rows have equal bytes: the compiler would store them once")
    return content.tobytes()


def _write(content: Bytes, written: dict[int, bytes], role: str, offset: int, data: bytes) -> None:
    if written.setdefault(offset, data) != data:
        raise AxzooError(f"{role} shares bytes with another tensor in the table, from which it now differs")
    content[offset : offset + len(data)] = np.frombuffer(data, np.uint8)


def _encoded_blocks(role: str, found: FoundMatrix, read: RowReader) -> Iterator[bytes]:
    """The blocks of a matrix from `read`, in the form of one that was found. Raises AxzooError where no published file
    shows what the compiler would write."""
    if found.form is None or found.unknown or found.ties or found.other_signs or found.zero_rows:
        raise AxzooError(f"{role} can be read, but its rounding is not known well enough to write it")
    layout, rule = found.form.layout, found.form.rule
    for weight in runs_of_rows(read(role), layout.rows, layout.columns):
        if rule is None:
            blocks = layout.encode_floats(weight)
            others = (replace(layout, weight_type=kind).encode_floats(weight) for kind in found.form.equal_types)
            if any((other != blocks).any() for other in others):
                raise AxzooError(f"{role} has weights that its possible types round to different values")
        else:
            peaks = peaks_of(weight)
            if not peaks.known.all():
                raise AxzooError(f"{role} has rows of zeros, and no file shows how they are stored")
            scales = scales_of(peaks.values, layout.weight_type, rule)
            try:
                blocks = layout.encode(codes_of(weight, scales, layout.weight_type, rule), scales)
            except BlockError as error:
                raise AxzooError(f"{role}: {error}") from None
        yield from (block.tobytes() for block in blocks)
