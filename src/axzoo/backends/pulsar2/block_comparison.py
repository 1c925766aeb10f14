"""Compares one block of rows with the places of a weight table where it may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from axzoo.backends.pulsar2.row_blocks import BlockError, BlockLayout, Bytes
from axzoo.backends.pulsar2.vendor_rules import Peaks, RuleName, codes_of, near_ties, scales_of
from axzoo.weights.scales import Codes, Floats

MISSING = -1
"""The offset of a block that was not found."""
MAX_TIES = 1e-3
"""The share of codes that another arithmetic may round differently."""
_PREFIX = 32
"""Bytes of a block that are compared before the whole block."""
_TRIES = 64
"""Places that are compared for a block whose scales have unknown signs."""


@dataclass
class Differences:
    """What differs in the blocks of one matrix. It is filled in while they are compared."""

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

    def texts(self, layout: BlockLayout, rows: int) -> Iterator[str]:
        """The differences of a matrix with so many rows, except for what is unknown and for bytes that are not 0."""
        blocks = rows // layout.rows
        if len(self.missing) == blocks:
            yield "is not in the file"
        elif self.missing:
            first = f"rows {self.missing[0]} to {self.missing[0] + layout.rows - 1}"
            yield f"has {len(self.missing)} of {blocks} blocks that are not in the file, the first has {first}"
        if self.wrong:
            row, column, value, wanted = self.wrong[0]
            yield (
                f"has {self.codes} wrong {'codes' if layout.is_integer else 'values'}, the first in row {row}, column "
                f"{column}: {value:g} instead of {wanted:g}"
            )
        if self.scales:
            yield f"has {len(self.scales)} wrong scales, the first in row {self.scales[0]}"
        if self.inconsistent:
            yield (
                f"has sums or padding that do not belong to its codes in {len(self.inconsistent)} blocks, the first "
                f"is that of row {self.inconsistent[0]}"
            )
        if self.ties > MAX_TIES * rows * layout.columns:
            yield f"has {self.ties} codes that are rounded the other way, more than another arithmetic explains"


@dataclass(frozen=True)
class BlockComparison:
    """One block of rows against the places where it may be. Row numbers count from `first_row`."""

    content: Bytes
    layout: BlockLayout
    rule: RuleName | None
    weight: Floats
    peaks: Peaks
    first_row: int
    differences: Differences

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
