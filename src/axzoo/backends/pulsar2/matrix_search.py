"""Finds the blocks of matrices in a weight table, and says how they differ from the given weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from axzoo.backends.pulsar2.block_comparison import MISSING, BlockComparison, Differences
from axzoo.backends.pulsar2.row_blocks import (
    FLOAT_TYPES,
    INTEGER_TYPES,
    ROWS,
    BlockLayout,
    StoredType,
    layouts,
    rounded_floats,
)
from axzoo.backends.pulsar2.vendor_rules import RULES, Peaks, RuleName, peaks_of, scales_of
from axzoo.backends.pulsar2.word_search import Words, find_sequences, words_of
from axzoo.parts.kind import RowReader
from axzoo.weights.scales import Floats

_RUN = 1 << 20
"""Weights in memory at a time."""


@dataclass(frozen=True)
class StorageForm:
    """How a matrix is stored. `rule` is None for float types. `equal_types` are other types that store it alike."""

    layout: BlockLayout
    rule: RuleName | None
    equal_types: tuple[StoredType, ...] = ()

    @property
    def numerics(self) -> str:
        """The type and the rule, such as "s8, rule A"."""
        types = " or ".join((self.layout.weight_type, *self.equal_types))
        return f"{types}, rule {self.rule}" if self.rule else types

    def __str__(self) -> str:
        return f"{self.numerics}, {self.layout.rows} rows per block"


@dataclass(frozen=True)
class FoundMatrix:
    """A matrix of the table. `offsets` [blocks] are in bytes from the table's start, -1 where a block was not found.

    `equal` blocks have the bytes of the given weights. `ties` codes are one off because of another arithmetic,
    `other_signs` scales of rule A have the sign that the first entry of largest magnitude does not give, and
    `zero_rows` rows hold only zeros: such a matrix can be read, but nothing shows how to write it. `not_zero` are the
    first rows of blocks whose unused bytes are not 0. `unknown` says what no published file shows, and `faults` what
    differs from the given weights.
    """

    form: StorageForm | None
    offsets: NDArray[np.int64]
    equal: int = 0
    ties: int = 0
    other_signs: int = 0
    zero_rows: int = 0
    not_zero: tuple[int, ...] = ()
    unknown: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


@dataclass
class SearchedMatrix:
    """A matrix to find: the peaks and the first column [rows] of its rows.

    `candidates` are the offsets in bytes at which each block may start, judging by its scales, by form and block.
    """

    role: str
    rows: int
    columns: int
    peaks: Peaks
    first: Floats
    candidates: dict[tuple[BlockLayout, RuleName | None], dict[int, NDArray[np.int64]]] = field(default_factory=dict)


def find_matrices(
    table: memoryview, shapes: Mapping[str, tuple[int, ...]], read: RowReader
) -> list[tuple[SearchedMatrix, FoundMatrix]]:
    """Finds the matrices among the tensors that `shapes` and `read` provide by role."""
    words = words_of(table)
    matrices = [_summary(role, shape, read(role)) for role, shape in shapes.items() if len(shape) == 2]
    _search(words, matrices)
    return list(zip(matrices, _chosen([_located(table, matrix, read) for matrix in matrices]), strict=True))


def _summary(role: str, shape: tuple[int, ...], blocks: Iterable[NDArray[np.generic]]) -> SearchedMatrix:
    values, ambiguous, first = [np.empty(0, np.float32)], [np.empty(0, np.bool_)], [np.empty(0, np.float32)]
    for block in blocks:
        for weight in _pieces(block, shape[1]):
            peaks = peaks_of(weight)
            values.append(peaks.values)
            ambiguous.append(peaks.ambiguous)
            first.append(weight[:, 0].copy())
    peaks = Peaks(np.concatenate(values), np.concatenate(ambiguous))
    return SearchedMatrix(role, shape[0], shape[1], peaks, np.concatenate(first))


def _pieces(block: NDArray[np.generic], columns: int) -> Iterator[Floats]:
    step = max(1, _RUN // columns)
    for start in range(0, len(block), step):
        yield block[start : start + step].astype(np.float32)


def runs_of_rows(blocks: Iterable[NDArray[np.generic]], rows: int, columns: int) -> Iterator[Floats]:
    """Consecutive rows as fp32, in runs of a multiple of `rows` rows with about _RUN weights."""
    step = max(rows, _RUN // columns // rows * rows)
    held: list[Floats] = []
    count = 0
    for block in blocks:
        for piece in _pieces(block, columns):
            held.append(piece)
            count += len(piece)
            while count >= step:
                joined = np.concatenate(held)
                yield joined[:step]
                held, count = [joined[step:]], count - step
    if count:
        yield np.concatenate(held)


def _search(words: Words, matrices: Sequence[SearchedMatrix]) -> None:
    """Fills in the candidates of every matrix: where a block of each form starts, judging by its scales or, for float
    types, its first column."""
    wanted, matters, owners = [], [], []
    for matrix in matrices:
        if matrix.rows % ROWS:
            continue
        known = matrix.peaks.known.reshape(-1, ROWS)
        sequences: list[tuple[StoredType, RuleName | None, Floats, NDArray[np.bool_]]] = []
        for kind in INTEGER_TYPES:
            sequences += [(kind, rule, scales_of(matrix.peaks.values, kind, rule), known) for rule in RULES]
        for kind in FLOAT_TYPES:
            column = rounded_floats(matrix.first, kind)
            sequences.append((kind, None, column, column.reshape(-1, ROWS) != 0))
        for kind, rule, values, relevant in sequences:
            wanted.append(np.ascontiguousarray(values, "<f4").view(np.uint32).reshape(-1, ROWS))
            matters.append(relevant)
            owners.append((matrix, kind, rule))
    if not wanted:
        return
    positions = find_sequences(words, np.concatenate(wanted), np.concatenate(matters))
    start = 0
    for (matrix, kind, rule), sequences_of in zip(owners, wanted, strict=True):
        hits = positions[start : start + len(sequences_of)]
        start += len(sequences_of)
        for layout in layouts(kind, matrix.columns):
            if candidates := _starts(words, layout, hits):
                matrix.candidates[layout, rule] = candidates


def _starts(words: Words, layout: BlockLayout, hits: list[NDArray[np.int64]]) -> dict[int, NDArray[np.int64]]:
    """The offsets in bytes at which a block may start, by block. `hits` are positions of 32 rows each."""
    groups = layout.rows // ROWS
    offsets = np.array(layout.scale_offsets) // 4 if layout.is_integer else np.zeros(1, np.int64)
    found = {}
    for block in range(len(hits) // groups):
        places = hits[block * groups]
        if groups == 2:
            places = places[np.isin(places + ROWS, hits[block * groups + 1])]
        starts = places - offsets[0]
        starts = starts[(starts >= 0) & (4 * starts + layout.block_bytes <= 4 * len(words))]
        for offset in offsets[1:]:
            if starts.size:
                reach = np.arange(layout.rows)
                same = words[starts[:, None] + offsets[0] + reach] == words[starts[:, None] + offset + reach]
                starts = starts[same.all(axis=1)]
        if starts.size:
            found[block] = 4 * starts
    return found


def _chosen(located: Sequence[Sequence[FoundMatrix]]) -> Iterator[FoundMatrix]:
    """One form of each matrix. If several are completely in the table, equal rows of other matrices are the reason, and
    all of these places must belong to some matrix."""
    taken = {offset for forms in located if len(forms) == 1 for offset in forms[0].offsets.tolist()}
    chosen = []
    for forms in located:
        chosen.append(max(forms, key=lambda found: (_share_outside(found, taken), -int(found.offsets[:1].sum()))))
        taken |= set(chosen[-1].offsets.tolist())
    for forms, found in zip(located, chosen, strict=True):
        rest = {offset for other in forms for offset in other.offsets.tolist()} - taken
        yield replace(found, faults=("is in the file in more than one form",)) if rest else found


def _share_outside(found: FoundMatrix, taken: Set[int]) -> float:
    """The share of a matrix's places that are not taken."""
    places = set(found.offsets.tolist())
    return len(places - taken) / max(1, len(places))


def _located(table: memoryview, matrix: SearchedMatrix, read: RowReader) -> list[FoundMatrix]:
    """The matrix in all forms in which it is completely in the table, or else in that which most of its blocks have.

    Float types that store the matrix alike are one form.
    """
    if matrix.rows % ROWS:
        text = f"has {matrix.rows} rows, and no file shows how a number that is not a multiple of {ROWS} is stored"
        return [FoundMatrix(None, np.empty(0, np.int64), unknown=(text,))]
    if not matrix.candidates:
        return [FoundMatrix(None, np.full(matrix.rows // ROWS, MISSING), faults=("is not in the file",))]
    sizes = {form: len(blocks) * form[0].rows for form, blocks in matrix.candidates.items()}
    likely = [form for form, size in sizes.items() if 2 * size >= max(sizes.values())]
    readings = [_matched(table, matrix, *form, read) for form in likely]
    complete = [found for found in readings if not (found.faults or found.unknown or found.not_zero)]
    if not complete:
        return [max(readings, key=_equal_rows)]
    forms = [found.form for found in complete if found.form]
    floats = [form.layout.weight_type for form in forms if not form.layout.is_integer]
    if not floats:
        return complete
    return [replace(complete[0], form=replace(forms[0], equal_types=tuple(floats[1:])))]


def _equal_rows(found: FoundMatrix) -> int:
    return found.equal * found.form.layout.rows if found.form else 0


def _matched(
    table: memoryview, matrix: SearchedMatrix, layout: BlockLayout, rule: RuleName | None, read: RowReader
) -> FoundMatrix:
    """Compares every block of a matrix with its candidates."""
    candidates = matrix.candidates[layout, rule]
    form = StorageForm(layout, rule)
    if matrix.rows % layout.rows:
        return FoundMatrix(form, np.empty(0, np.int64), faults=(f"has {matrix.rows} rows in blocks of {layout.rows}",))
    content = np.frombuffer(table, np.uint8)
    offsets = np.full(matrix.rows // layout.rows, MISSING)
    differences = Differences()
    expected_at = MISSING
    block = 0
    for weight in runs_of_rows(read(matrix.role), layout.rows, layout.columns):
        for start in range(0, len(weight), layout.rows):
            rows = slice(block * layout.rows, (block + 1) * layout.rows)
            places = candidates.get(block, np.empty(0, np.int64))
            piece = weight[start : start + layout.rows]
            peaks = Peaks(matrix.peaks.values[rows], matrix.peaks.ambiguous[rows])
            compare = BlockComparison(content, layout, rule, piece, peaks, rows.start, differences)
            offsets[block] = compare.place(places, expected_at)
            expected_at = offsets[block] + layout.block_bytes if offsets[block] != MISSING else MISSING
            block += 1
    zero_rows = int((~matrix.peaks.known).sum())
    return FoundMatrix(
        form,
        offsets,
        differences.equal,
        differences.ties,
        differences.other_signs,
        zero_rows,
        tuple(differences.not_zero),
        tuple(dict.fromkeys(differences.unknown)),
        tuple(differences.texts(layout, matrix.rows)),
    )
