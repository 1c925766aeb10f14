"""Blocks of rows: hand vectors, published sizes and offsets, and an independent writer."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import table_writer

from axzoo.backends.pulsar2.row_blocks import BlockError, BlockLayout, StoredType, column_parts, layouts

PARTS = {
    256: (256,), 512: (512,), 544: (544,), 576: (576,),
    1024: (480, 544), 1536: (448, 544, 544), 2048: (416, *[544] * 3), 3072: (352, *[544] * 5),
    4096: (288, *[544] * 7), 11008: (128, *[544] * 20),
    896: (352, 544), 960: (416, 544), 2304: (128, *[544] * 4), 4864: (512, *[544] * 8), 5760: (320, *[544] * 10),
    8960: (256, *[544] * 16),
}  # fmt: skip
"""The published cuts of columns, and those that the formula gives."""


@pytest.mark.parametrize("columns", PARTS)
def test_column_parts(columns: int) -> None:
    assert column_parts(columns) == (PARTS[columns],)
    assert list(PARTS[columns]) == table_writer.parts(columns)


@pytest.mark.parametrize("columns", [1120, 1664, 8192])
def test_a_wide_first_part_is_one_of_two_ways(columns: int) -> None:
    """A first part of 545 to 576 columns was seen for 576 columns only."""
    usual, cut = column_parts(columns)
    assert usual == tuple(table_writer.parts(columns))
    assert usual[0] in range(545, 577)
    assert cut == (usual[0] - 544, 544, *usual[1:])


def _layout(kind: StoredType, rows: int, columns: int) -> BlockLayout:
    return next(layout for layout in layouts(kind, columns) if layout.rows == rows)


def test_published_sizes_of_parts() -> None:
    sizes = dict.fromkeys((544,), (9600, 18944)) | {480: (8448, 16640), 416: (7296, 0), 352: (6144, 0)}
    for width, (s4, s8) in sizes.items():
        assert _layout("s4", 32, width).part_bytes(width) == s4
        assert s8 in (0, _layout("s8", 32, width).part_bytes(width))
    assert _layout("s8", 32, 256).block_bytes == 9728


def test_hand_vectors() -> None:
    s4, s8 = _layout("s4", 32, 36), _layout("s8", 32, 36)
    codes = np.zeros((32, 36), np.int8)
    codes[0, :2] = -8, 7
    block = s4.encode(codes, np.ones(32, np.float32))[0]
    assert block[:3].tolist() == [0xF0, 0x88, 0x88]
    zero = s8.encode(np.zeros((32, 36), np.int8), np.ones(32, np.float32))[0]
    assert (zero[:18] == 0).all()
    assert (zero[18:36] == 0x88).all()
    codes[:] = 0
    codes[5, :2] = 1
    for layout, step in ((s4, 4), (s8, 8)):
        start = layout.part_bytes(36) - (12 if step == 4 else 16) * 32
        tail = layout.encode(codes, np.full(32, 0.5, np.float32))[0, start:]
        assert struct.unpack_from("<i", tail, 5 * step) == (-65536,)
        assert struct.unpack_from("<i", tail, 4 * step) == (0,)
        assert tail[-128:].tobytes() == struct.pack("<f", 0.5) * 32


CASES = [
    *(("s8", 32, columns) for columns in (1, 35, 36, 576, 1024)),
    *(("s4", 32, columns) for columns in (544, 577)),
    *(("s4", 64, columns) for columns in (64, 1120)),
]


@pytest.mark.parametrize("kind, rows, columns", CASES)
def test_round_trip_and_the_independent_writer(kind: StoredType, rows: int, columns: int) -> None:
    random = np.random.default_rng(columns)
    levels = 128 if kind == "s8" else 8
    codes = random.integers(-levels, levels, (3 * rows, columns)).astype(np.int8)
    scales = random.standard_normal(3 * rows).astype(np.float32)
    for layout in (one for one in layouts(kind, columns) if one.rows == rows):
        blocks = layout.encode(codes, scales)
        assert blocks.shape == (3, layout.block_bytes)
        for index in range(3):
            own = slice(index * rows, (index + 1) * rows)
            expected, start = b"", 0
            for width in layout.widths:
                part = [row[start : start + width] for row in codes[own].tolist()]
                expected += table_writer.part_bytes(part, list(scales[own]), kind)
                start += width
            assert blocks[index].tobytes() == expected
        decoded = layout.decode(blocks)
        assert np.array_equal(decoded.codes, codes)
        assert (decoded.scales == scales.reshape(3, 1, rows)).all()
        assert decoded.consistent.all()
        assert decoded.zeros.all()


@pytest.mark.parametrize("kind, rows, columns", [("s8", 32, 700), ("s4", 32, 60), ("s4", 64, 60)])
def test_every_flipped_bit_is_noticed(kind: StoredType, rows: int, columns: int) -> None:
    """A flipped bit changes a code or a scale, or the sums, zeros and padding no longer belong to the codes."""
    layout = _layout(kind, rows, columns)
    codes = np.random.default_rng(0).integers(-8, 8, (rows, columns)).astype(np.int8)
    block = layout.encode(codes, np.ones(rows, np.float32))
    for place in np.random.default_rng(1).choice(layout.block_bytes, 300, replace=False).tolist():
        changed = block.copy()
        changed[0, place] ^= 1 << place % 8
        decoded = layout.decode(changed)
        right = decoded.consistent.all() and decoded.zeros.all() and (decoded.scales == 1).all()
        assert not right, place


@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16", "fp8_e4m3"])
def test_float_blocks(kind: StoredType) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 50)).astype(np.float32)
    (layout,) = layouts(kind, 50)
    blocks = layout.encode_floats(weight)
    assert blocks.shape == (2, 4 * 32 * 50)
    for index in range(2):
        assert blocks[index].tobytes() == table_writer.block_bytes(weight[32 * index : 32 * index + 32], kind, "A")


def test_sums_that_do_not_fit() -> None:
    layout = BlockLayout("s8", 32, (544,))
    codes = np.full((32, 544), 127, np.int8)
    with pytest.raises(BlockError, match="sum up to more than 65535"):
        layout.encode(codes, np.ones(32, np.float32))
    codes[:, 516:] = 0
    assert layout.encode(codes, np.ones(32, np.float32)).shape == (1, 18944)


def test_blocks_that_nobody_has_seen() -> None:
    with pytest.raises(BlockError, match="nobody has seen s8 blocks of 64 rows"):
        BlockLayout("s8", 64, (544,))


@dataclass(frozen=True)
class _Build:
    """A published build: its shape, the rows of q, k and v's blocks, and the words at the end of its table."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    kv: int
    tail: int
    qk_norm: bool = False
    qkv_rows: int = 32
    unit_norms: bool = False

    def offsets(self, kind: StoredType) -> Iterator[tuple[str, int]]:
        """Where everything starts, and the total."""
        at = 4 * (self.kv + 1)
        norm, head = 4 * self.hidden, 4 * self.head_dim
        integer = kind in ("s8", "s4")

        def size(rows: int, columns: int, block: int = 32) -> int:
            layout = _layout(kind, block if integer else 32, columns)
            return rows // layout.rows * layout.block_bytes

        yield "norm 1", at
        at += (0 if self.unit_norms else 2 * norm) + (4 if integer else 0)
        kv_rows, first = self.kv_heads * self.head_dim, size(self.head_dim, self.hidden, self.qkv_rows)
        yield "v", at
        at += size(kv_rows, self.hidden, self.qkv_rows) + (0 if integer else 128)
        yield "k", at
        at += first
        yield "k_norm", at
        at += head if self.qk_norm and not self.unit_norms else 0
        yield "rope", at
        at += self.kv * head * (2 if self.qk_norm else 1)
        at += head if self.qk_norm and not self.unit_norms else 0
        yield "k'", at
        at += size(kv_rows, self.hidden, self.qkv_rows) - first
        yield "q", at
        at += first
        yield "q_norm", at
        at += head if self.qk_norm and not self.unit_norms else 0
        at += size(self.heads * self.head_dim, self.hidden, self.qkv_rows) - first
        yield "o", at
        at += size(self.hidden, self.heads * self.head_dim)
        yield "norm", at
        at += 0 if self.unit_norms else norm
        for name in ("gate", "up"):
            yield name, at
            at += size(self.inner, self.hidden)
        yield "down", at
        at += size(self.hidden, self.inner)
        yield "tail", at
        yield "total", at + 4 * self.tail


TINY = _Build(256, 8, 2, 32, 512, 127, 64, unit_norms=True)
WIDER = _Build(256, 8, 2, 32, 2048, 127, 64, unit_norms=True)
SMOLLM2 = _Build(576, 9, 3, 64, 1536, 255, 128, qkv_rows=64)
QWEN3 = _Build(1024, 16, 8, 128, 3072, 255, 128, qk_norm=True)
QWEN3_52 = _Build(1024, 16, 8, 128, 3072, 2048, 52 * 128, qk_norm=True)
QWEN3_70P1 = _Build(1024, 16, 8, 128, 3072, 256, 6 * 128, qk_norm=True)
QWEN3_70P1_UNIT = _Build(1024, 16, 8, 128, 3072, 256, 6 * 128, qk_norm=True, unit_norms=True)
QWEN3_LLM_BUILD2 = _Build(1024, 16, 8, 128, 3072, 63, 0, qk_norm=True, unit_norms=True)
"""Its total leaves no room for words at the end."""

PUBLISHED: list[tuple[_Build, StoredType, dict[str, int]]] = [
    (TINY, "s8", {"total": 665_220, "v": 516}),
    (TINY, "s4", {"total": 348_804, "v": 516}),
    (TINY, "bf16", {"total": 2_245_376}),
    (WIDER, "s8", {"total": 2_026_116}),
    (WIDER, "s4", {"total": 1_044_612}),
    (WIDER, "bf16", {"total": 6_963_968}),
    (
        SMOLLM2,
        "s4",
        {"total": 1_943_428, "v": 5636, "k": 63236, "rope": 82436, "k'": 147716, "q": 186116, "o": 358916,
         "norm": 531716, "gate": 534020, "up": 994820, "down": 1455620},
    ),
    (
        QWEN3,
        "s4",
        {"total": 8_939_524, "v": 9220, "k": 586756, "k_norm": 658948, "k'": 921092, "q": 1426436, "q_norm": 1498628,
         "o": 2582020, "norm": 3737092, "gate": 3741188, "up": 5473796, "down": 7206404},
    ),
    (QWEN3_52, "s8", {"total": 19_226_120, "norm 1": 8196, "v": 16392, "k'": 3395592, "tail": 19199496}),
    (QWEN3_70P1, "s8", {"total": 17_360_392}),
    (QWEN3_70P1_UNIT, "s8", {"total": 17_346_568}),
    (QWEN3_LLM_BUILD2, "s4", {"total": 8_727_812}),
]  # fmt: skip


@pytest.mark.parametrize("build, kind, expected", PUBLISHED)
def test_published_totals_and_offsets(build: _Build, kind: StoredType, expected: dict[str, int]) -> None:
    found = dict(build.offsets(kind))
    assert {name: found[name] for name in expected} == expected


def test_published_offset_after_a_k_norm() -> None:
    """It ends at byte 1297928 of Qwen3's 5.2 table."""
    assert dict(QWEN3_52.offsets("s8"))["rope"] == 1297928


def test_published_scale_distances() -> None:
    """Scales of the llm_build2 table: 9600 bytes apart 576 times, 8448 318 times, 7296 and 6144 32 times each, and once
    72960. Between two matrices that follow each other, the distance is that of their parts."""
    distances: dict[int, int] = {}
    order = [("v", 1024, 1024), ("k", 128, 1024), ("gap", 0, 0), ("k'", 896, 1024), ("q", 2048, 1024),
             ("o", 1024, 2048), ("gate", 3072, 1024), ("up", 3072, 1024), ("down", 1024, 3072)]  # fmt: skip
    gap = 0
    for name, rows, columns in order:
        if name == "gap":
            gap = 2 * 63 * 128 * 4
            continue
        layout = _layout("s4", 32, columns)
        for _ in range(rows // 32):
            for width in layout.widths:
                distance = layout.part_bytes(width) + gap
                distances[distance] = distances.get(distance, 0) + 1
                gap = 0
    first = _layout("s4", 32, 1024).part_bytes(480)
    distances[first] -= 1  # the first scales have none before them
    assert distances == {9600: 576, 8448: 318, 7296: 32, 6144: 32, 72960: 1}


def test_published_size_of_a_post_table() -> None:
    """Qwen3-0.6B: 4,748 blocks of vocabulary rows, of which seven are stored once more than needed, norm and zeros."""
    blocks = 151_936 // 32
    assert (blocks, (blocks - 7) * _layout("s8", 32, 1024).block_bytes + 8_196) == (4748, 168_711_940)
