"""Finds the blocks of one matrix in a weight table, and says how they differ from the given weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from axzoo.backends.pulsar2.row_blocks import (
    FLOAT_TYPES,
    INTEGER_TYPES,
    ROWS,
    BlockError,
    BlockLayout,
    Bytes,
    StoredType,
    layouts,
    rounded_floats,
)
from axzoo.backends.pulsar2.vendor_rules import RULES, Peaks, RuleName, codes_of, near_ties, peaks_of, scales_of
from axzoo.backends.pulsar2.word_search import Words, find_sequences, words_of
from axzoo.core.errors import AxzooError
from axzoo.parts.kind import RowReader
from axzoo.weights.scales import Codes, Floats

MAX_TIES = 1e-3
"""The share of codes that another arithmetic may round differently."""
MISSING = -1
"""The offset of a block that was not found."""
_RUN = 1 << 20
"""Weights in memory at a time."""
_PREFIX = 32
"""Bytes of a block that are compared before the whole block."""
_TRIES = 64
"""Places that are compared for a block whose scales have unknown signs."""


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
    """One form of each matrix. If several are completely in the table, equal rows of another matrix can be the reason:
    the form is chosen that no other matrix has."""
    taken = {offset for forms in located if len(forms) == 1 for offset in forms[0].offsets.tolist()}
    chosen = [max(forms, key=lambda found: len(set(found.offsets.tolist()) - taken)) for forms in located]
    taken = {offset for found in chosen for offset in found.offsets.tolist()}
    for forms, found in zip(located, chosen, strict=True):
        rest = {offset for other in forms for offset in other.offsets.tolist()} - taken
        yield replace(found, faults=("is in the file in more than one form",)) if rest else found


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


@dataclass
class _Differences:
    """What differs in the blocks of one matrix, while they are compared."""

    equal: int = 0
    missing: list[int] = field(default_factory=list)
    wrong: list[tuple[int, int, int, int]] = field(default_factory=list)
    codes: int = 0
    scales: list[int] = field(default_factory=list)
    inconsistent: list[int] = field(default_factory=list)
    not_zero: list[int] = field(default_factory=list)
    ties: int = 0
    other_signs: int = 0
    unknown: list[str] = field(default_factory=list)


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
    differences = _Differences()
    expected_at = MISSING
    block = 0
    for weight in runs_of_rows(read(matrix.role), layout.rows, layout.columns):
        for start in range(0, len(weight), layout.rows):
            rows = slice(block * layout.rows, (block + 1) * layout.rows)
            places = candidates.get(block, np.empty(0, np.int64))
            piece = weight[start : start + layout.rows]
            peaks = Peaks(matrix.peaks.values[rows], matrix.peaks.ambiguous[rows])
            compare = _BlockComparison(content, layout, rule, piece, peaks, rows.start, differences)
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
        tuple(_texts(differences, layout, matrix)),
    )


@dataclass(frozen=True)
class _BlockComparison:
    """One block of rows against the places where it may be. Row numbers count from `first_row`."""

    content: Bytes
    layout: BlockLayout
    rule: RuleName | None
    weight: Floats
    peaks: Peaks
    first_row: int
    differences: _Differences

    def place(self, places: NDArray[np.int64], expected_at: int) -> int:
        """The offset of the block, or of the candidate that is compared with it if there is no equal one; -1 if there
        is no candidate."""
        if self.rule is None:
            wanted = self.layout.encode_floats(self.weight)[0]
            equal = self._equal(places, wanted)
            return equal if equal != MISSING else self._different_floats(places, wanted)
        usual = self._usual_scales()
        try:
            found = self._equal(places, self._encoded(usual))
            for place in places[:_TRIES].tolist() if self._is_open else ():
                if found != MISSING:
                    break
                scales = self._scales(place)
                found = self._equal(places[places == place], self._encoded(scales))
                if found != MISSING:
                    self.differences.other_signs += int((np.signbit(scales) != np.signbit(usual)).sum())
        except BlockError as error:
            self.differences.unknown.append(str(error))
            return MISSING
        return found if found != MISSING else self._different(places, expected_at)

    @property
    def _is_open(self) -> bool:
        """Whether the rule leaves scales of the block open."""
        return bool(self.peaks.ambiguous.any() or not self.peaks.known.all())

    def _encoded(self, scales: Floats) -> Bytes:
        return np.asarray(self.layout.encode(self._codes(scales), scales)[0])

    def _equal(self, places: NDArray[np.int64], wanted: Bytes) -> int:
        """The first place with the wanted bytes; -1 if there is none."""
        start = self.content[places[:, None] + np.arange(_PREFIX)] == wanted[:_PREFIX]
        for place in places[start.all(axis=1)].tolist():
            if np.array_equal(self._bytes(place), wanted):
                self.differences.equal += 1
                return int(place)
        return MISSING

    def _bytes(self, place: int) -> Bytes:
        return self.content[place : place + self.layout.block_bytes]

    def _scales(self, place: int) -> Floats:
        """The scales at a place where they follow the rule, as far as it is known, and the rule's where they do not."""
        start = place + self.layout.scale_offsets[0]
        found = self.content[start : start + 4 * self.layout.rows].view("<f4")
        usual = self._usual_scales()
        allowed = np.where(self.peaks.ambiguous, np.abs(found) == np.abs(usual), found.view("<u4") == usual.view("<u4"))
        return np.where(allowed | ~self.peaks.known & np.isfinite(found), found, usual).astype(np.float32)

    def _usual_scales(self) -> Floats:
        assert self.rule is not None, "float types have no scales"
        return scales_of(self.peaks.values, self.layout.weight_type, self.rule)

    def _codes(self, scales: Floats) -> Codes:
        assert self.rule is not None, "float types have no codes"
        known = self.peaks.known
        codes = codes_of(self.weight, np.where(known, scales, np.float32(1)), self.layout.weight_type, self.rule)
        return np.where(known[:, None], codes, np.int8(0))

    def _different(self, places: NDArray[np.int64], expected_at: int) -> int:
        """Records how the block differs from the one at the first candidate, or else at the expected place."""
        place = int(places[0]) if places.size else expected_at
        if place == MISSING or place + self.layout.block_bytes > len(self.content):
            self.differences.missing.append(self.first_row)
            return MISSING
        decoded = self.layout.decode(self._bytes(place)[None])
        wanted = self._scales(place)
        wrong = (decoded.scales[0].view(np.uint32) != wanted.view(np.uint32)).any(axis=0)
        if wrong.sum() * 2 > len(wrong):
            self.differences.missing.append(self.first_row)
            return MISSING
        codes = self._codes(wanted)
        step = decoded.codes.astype(np.int16) - codes
        tie = (np.abs(step) == 1) & near_ties(self.weight, np.where(wanted == 0, np.float32(1), wanted))
        different = (step != 0) & ~tie
        found = self.differences
        found.ties += int(tie.sum())
        found.codes += int(different.sum())
        found.scales += (np.nonzero(wrong)[0] + self.first_row).tolist()
        if not decoded.consistent.all():
            found.inconsistent.append(self.first_row)
        if not decoded.zeros.all():
            found.not_zero.append(self.first_row)
        for row, column in zip(*(index[:1].tolist() for index in np.nonzero(different)), strict=True):
            values = int(decoded.codes[row, column]), int(codes[row, column])
            found.wrong.append((self.first_row + row, column, *values))
        return place

    def _different_floats(self, places: NDArray[np.int64], wanted: Bytes) -> int:
        if not places.size:
            self.differences.missing.append(self.first_row)
            return MISSING
        place = int(places[0])
        different = np.nonzero(self._bytes(place).view("<u4") != wanted.view("<u4"))[0]
        column, row = divmod(int(different[0]), self.layout.rows)
        self.differences.codes += len(different)
        values = (self._bytes(place).view("<f4")[different[0]], wanted.view("<f4")[different[0]])
        self.differences.wrong.append((self.first_row + row, column, *values))
        return place


def _texts(found: _Differences, layout: BlockLayout, matrix: SearchedMatrix) -> Iterator[str]:
    blocks = matrix.rows // layout.rows
    if len(found.missing) == blocks:
        yield "is not in the file"
    elif found.missing:
        rows = f"rows {found.missing[0]} to {found.missing[0] + layout.rows - 1}"
        yield f"has {len(found.missing)} of {blocks} blocks that are not in the file, the first has {rows}"
    if found.wrong:
        row, column, value, wanted = found.wrong[0]
        yield (
            f"has {found.codes} wrong {'codes' if layout.is_integer else 'values'}, the first in row {row}, column "
            f"{column}: {value:g} instead of {wanted:g}"
        )
    if found.scales:
        yield f"has {len(found.scales)} wrong scales, the first in row {found.scales[0]}"
    if found.inconsistent:
        yield (
            f"has sums or padding that do not belong to its codes in {len(found.inconsistent)} blocks, the first "
            f"is that of row {found.inconsistent[0]}"
        )
    if found.ties > MAX_TIES * matrix.rows * matrix.columns:
        yield f"has {found.ties} codes that are rounded the other way, more than another arithmetic explains"


def encoded_blocks(role: str, found: FoundMatrix, read: RowReader) -> Iterator[bytes]:
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
