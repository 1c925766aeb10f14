"""The blocks of rows in which the vendor's files store weight matrices, for AX650.

A matrix [out_features, in_features] is stored as blocks of 32 or 64 rows in ascending order. Integer types cut the
columns into parts; a part has its codes, then for each row the sum of the codes, zeros, and the scale. Float types
store every weight as fp32, column by column. docs/vendor.md says where this is known from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from axzoo.core.dtypes import NUMPY_DTYPES
from axzoo.weights.scales import Codes, Floats

StoredType = Literal["s8", "s4", "fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2"]
INTEGER_TYPES: tuple[StoredType, ...] = ("s8", "s4")
FLOAT_TYPES: tuple[StoredType, ...] = get_args(StoredType)[2:]

CHUNK = 36
"""Columns whose codes are stored together, in 18 bytes of nibbles. The last chunk of a part is padded with code 0."""
_CHUNK_BYTES = CHUNK // 2
_PART, _SHORT = 544, 576
"""The width of a part, and of the widest matrix that is not cut."""
ROWS = 32
"""Rows of a block. Some s4 matrices have blocks of twice as many."""
MAX_SUM = 65_535
"""The largest magnitude of a sum of codes, which is stored with 16 binary places in an int32."""

Bytes = NDArray[np.uint8]


class BlockError(ValueError):
    """Weights that no published block shows how to store. The message says which."""


@dataclass(frozen=True)
class BlockLayout:
    """How a matrix is cut into blocks: its type, the rows of a block, and the widths of its parts of columns.

    Float types have one part and blocks of 32 rows.
    """

    weight_type: StoredType
    rows: int
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        if (self.weight_type, self.rows) not in [*((kind, ROWS) for kind in get_args(StoredType)), ("s4", 2 * ROWS)]:
            raise BlockError(f"nobody has seen {self.weight_type} blocks of {self.rows} rows")

    @property
    def is_integer(self) -> bool:
        return self.weight_type in INTEGER_TYPES

    @property
    def columns(self) -> int:
        return sum(self.widths)

    def part_bytes(self, width: int) -> int:
        """The size of a part of so many columns."""
        if not self.is_integer:
            return 4 * self.rows * width
        return self._body_bytes(width) + self._tail_bytes

    @property
    def block_bytes(self) -> int:
        return sum(map(self.part_bytes, self.widths))

    @property
    def scale_offsets(self) -> tuple[int, ...]:
        """Where the scales of each part start, from the start of the block, in bytes."""
        ends = np.cumsum([self.part_bytes(width) for width in self.widths])
        return tuple(int(end) - 4 * self.rows for end in ends)

    def _body_bytes(self, width: int) -> int:
        nibbles_per_code = 2 if self.weight_type == "s8" else 1
        return nibbles_per_code * self.rows * _CHUNK_BYTES * -(-width // CHUNK)

    @property
    def _tail_bytes(self) -> int:
        return (16 if self.weight_type == "s8" else 12) * self.rows

    def encode(self, codes: Codes, scales: Floats) -> Bytes:
        """codes [blocks * rows, columns] int8, scales [blocks * rows] fp32 -> [blocks, block_bytes].

        Raises BlockError when the codes of a row sum up to more than the format holds.
        """
        blocks = len(codes) // self.rows
        grouped = codes.reshape(blocks, self.rows, self.columns)
        scale_bytes = np.ascontiguousarray(scales, "<f4").view(np.uint8).reshape(blocks, -1)
        pieces, start = [], 0
        for width in self.widths:
            part = grouped[:, :, start : start + width]
            sums = part.sum(axis=2, dtype=np.int64)
            if (np.abs(sums) > MAX_SUM).any():
                raise BlockError(
                    f"the codes of a row sum up to more than {MAX_SUM}, and nobody knows what happens then"
                )
            zeros = np.zeros((blocks, 4 * self.rows), np.uint8)
            pieces += [self._body(part), self._sum_bytes(sums), zeros, scale_bytes]
            start += width
        return np.concatenate(pieces, axis=1)

    def _body(self, codes: Codes) -> Bytes:
        blocks, rows, width = codes.shape
        chunks = -(-width // CHUNK)
        excess = 8 if self.weight_type == "s4" else 128
        padded = np.full((blocks, rows, chunks * CHUNK), excess, np.uint8)
        padded[:, :, :width] = codes.view(np.uint8) + np.uint8(excess)  # modulo 256
        nibbles: Bytes = padded
        if (
            self.weight_type == "s8"
        ):  # a row of 8-bit codes is stored as two rows of nibbles: the low ones, the high ones
            nibbles = np.stack([padded & 0xF, padded >> 4], axis=2).reshape(blocks, 2 * rows, -1)
        packed = nibbles[:, :, 0::2] | nibbles[:, :, 1::2] << 4
        return self._interleaved(np.asarray(packed, np.uint8).reshape(blocks, -1, chunks, _CHUNK_BYTES))

    def _interleaved(self, packed: Bytes) -> Bytes:
        """packed [blocks, rows of nibbles, chunks, 18] -> [blocks, bytes]: of 32 rows, two are together in each chunk;
        of 64, two of the first half and two of the second."""
        blocks, rows, chunks, size = packed.shape
        halves = rows // ROWS
        units = packed.reshape(blocks, halves, ROWS // 2, 2, chunks, size)
        return units.transpose(0, 2, 4, 1, 3, 5).reshape(blocks, -1)

    def _sum_bytes(self, sums: NDArray[np.int64]) -> Bytes:
        """sums of codes [blocks, rows] -> [blocks, bytes]; larger ones than MAX_SUM wrap."""
        words = (-32768 * sums).astype("<i4")
        if self.weight_type == "s8":
            words = np.stack([words, np.zeros_like(words)], axis=2)
        return words.reshape(len(sums), -1).view(np.uint8)

    def decode(self, blocks: Bytes) -> DecodedBlocks:
        """[blocks, block_bytes] of an integer type -> what they hold."""
        count, codes, scales, consistent, zeros = len(blocks), [], [], [], []
        start = 0
        for width in self.widths:
            body_end = start + self._body_bytes(width)
            end = start + self.part_bytes(width)
            part, padding = self._codes(blocks[:, start:body_end], width)
            tail = np.ascontiguousarray(blocks[:, body_end:end])
            sums = self._sum_bytes(part.sum(axis=2, dtype=np.int64))
            consistent.append((tail[:, : sums.shape[1]] == sums).all(axis=1) & ~padding)
            zeros.append(~tail[:, sums.shape[1] : -4 * self.rows].any(axis=1))
            scales.append(np.ascontiguousarray(tail[:, -4 * self.rows :]).view("<f4"))
            codes.append(part)
            start = end
        joined = np.concatenate(codes, axis=2).reshape(count * self.rows, self.columns)
        return DecodedBlocks(joined, *(np.stack(each, axis=1) for each in (scales, consistent, zeros)))

    def _codes(self, body: Bytes, width: int) -> tuple[Codes, NDArray[np.bool_]]:
        """The codes [blocks, rows, width] of a part's body, and whether padding is not 0: [blocks]."""
        chunks = -(-width // CHUNK)
        rows = self.rows * (2 if self.weight_type == "s8" else 1)
        units = np.ascontiguousarray(body).reshape(len(body), ROWS // 2, chunks, rows // ROWS, 2, _CHUNK_BYTES)
        packed = units.transpose(0, 3, 1, 4, 2, 5).reshape(len(body), rows, chunks * _CHUNK_BYTES)
        nibbles = np.empty((len(body), rows, chunks * CHUNK), np.uint8)
        nibbles[:, :, 0::2] = packed & np.uint8(0xF)
        nibbles[:, :, 1::2] = packed >> np.uint8(4)
        excess = 8
        if self.weight_type == "s8":
            nibbles = nibbles[:, 0::2] | nibbles[:, 1::2] << np.uint8(4)
            excess = 128
        padding = (nibbles[:, :, width:] != excess).any(axis=(1, 2))
        return (nibbles[:, :, :width] - np.uint8(excess)).view(np.int8), padding

    def encode_floats(self, weight: Floats) -> Bytes:
        """weight [blocks * 32, columns] fp32, rounded to a float type -> [blocks, block_bytes]."""
        rounded = rounded_floats(weight, self.weight_type)
        blocks = rounded.reshape(-1, self.rows, self.columns).transpose(0, 2, 1)
        return np.ascontiguousarray(blocks, "<f4").view(np.uint8).reshape(len(blocks), -1)


@dataclass(frozen=True)
class DecodedBlocks:
    """The contents of blocks: codes [rows, columns], the scales of each part [blocks, parts, rows of a block].

    `consistent` [blocks, parts]: the sums and the padding are those of the codes. `zeros` [blocks, parts]: the bytes
    that are 0 in all known files are.
    """

    codes: Codes
    scales: Floats
    consistent: NDArray[np.bool_]
    zeros: NDArray[np.bool_]


def rounded_floats(weight: Floats, weight_type: StoredType) -> Floats:
    """Weights rounded to a float type, as fp32."""
    with np.errstate(over="ignore"):
        return weight.astype(NUMPY_DTYPES[weight_type]).astype(np.float32)


def layouts(weight_type: StoredType, columns: int) -> tuple[BlockLayout, ...]:
    """How a matrix with so many columns may be stored, the likeliest first."""
    if weight_type in FLOAT_TYPES:
        return (BlockLayout(weight_type, ROWS, (columns,)),)
    sizes = (ROWS, 2 * ROWS) if weight_type == "s4" else (ROWS,)
    return tuple(BlockLayout(weight_type, rows, widths) for widths in column_parts(columns) for rows in sizes)


def column_parts(columns: int) -> tuple[tuple[int, ...], ...]:
    """The widths into which so many columns may be cut, the likeliest first.

    The short part is the first. Whether one of 545 to 576 columns is cut again was seen for 576 columns only: it is
    not.
    """
    full = max(0, -(-(columns - _SHORT) // _PART))
    usual = (columns - full * _PART,) + (_PART,) * full
    if usual[0] <= _PART or columns <= _SHORT:
        return (usual,)
    return usual, (usual[0] - _PART, _PART, *usual[1:])
