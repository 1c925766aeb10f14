"""Reading weight tables: random layers without a false alarm, and planted faults, all of them found."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from table_writer import (
    Matrix,
    Shape,
    Table,
    block_bytes,
    layer_table,
    part_bytes,
    parts,
    post_table,
    random_layer,
    row_codes,
    row_scale,
)

from axzoo.backends.pulsar2.weight_proof import order_faults
from axzoo.backends.pulsar2.weight_table import TableReading, filled, read_table
from axzoo.core.errors import AxzooError

WIDTHS = (256, 512, 544, 576, 896, 960, 1024, 1120, 1536, 2048, 2304, 3072, 4096, 4864, 5760, 8960, 11008)
"""Numbers of columns: the published cuts, those of other models, and one whose cut nobody has seen."""


def random_shape(index: int, widths: Sequence[int], random: np.random.Generator) -> Shape:
    """A small layer in which one of the numbers of columns is one of `widths`."""
    width = widths[index % len(widths)]
    kind, rule = [("s8", "A"), ("s8", "B"), ("s4", "A"), ("s4", "B")][random.integers(4)]
    head_dim = int(random.choice([32, 64, 128]))
    kv_heads, groups = int(random.integers(1, 3)), int(random.integers(1, 3))
    wide = random.integers(0, 3)
    if wide == 1:  # o_proj's columns
        head_dim, kv_heads, groups = 32, 1, width // 32
    return Shape(
        hidden=width if wide == 0 else 32 * int(random.integers(1, 3)),
        heads=kv_heads * groups,
        kv_heads=kv_heads,
        head_dim=head_dim,
        inner=width if wide == 2 else 32 * int(random.integers(1, 4)),
        kind=kind,
        rule=rule,
        qkv_rows=64 if kind == "s4" and head_dim == 64 and kv_heads * head_dim % 64 == 0 else 32,
        qk_norm=bool(random.random() < 0.4),
        kv=int(random.integers(1, 40)),
        prefill=int(random.integers(1, 20)),
    )


def vary(shape: Shape, layer: dict[str, Matrix], random: np.random.Generator) -> int:
    """What real and marker checkpoints have: bf16 weights, which have many ties, unit norms, equal norms, matrices that
    are prefixes of one stream and so share blocks, rows with both signs of their largest magnitude."""
    case = random.integers(0, 8)
    if case < 3:
        for role in shape.matrices:
            layer[role] = layer[role].astype(ml_dtypes.bfloat16).astype(np.float32)
    elif case == 3:
        for role in shape.vectors:
            layer[role][:] = 1
    elif case == 4:
        layer["mlp_norm.weight"] = layer["input_norm.weight"].copy()
    elif case == 5:
        longest = max(rows * columns for rows, columns in shape.matrices.values())
        stream = random.standard_normal(longest).astype(np.float32)
        for role, (rows, columns) in shape.matrices.items():
            layer[role] = stream[: rows * columns].reshape(rows, columns)
    elif case == 6:
        for role in shape.matrices:
            peak = np.abs(layer[role]).max()
            layer[role][3, :2] = peak, -peak
    return int(case)


def read(layer: Mapping[str, Matrix]) -> Callable[[str], Iterable[NDArray[Any]]]:
    """A reader that gives rows in blocks of odd sizes."""
    return lambda role: (layer[role][start : start + 37] for start in range(0, len(layer[role]), 37))


def reading_of(table: bytes, layer: Mapping[str, Matrix]) -> TableReading:
    return read_table(memoryview(table), {role: tensor.shape for role, tensor in layer.items()}, read(layer))


def check_layer(seed: int, widths: Sequence[int]) -> None:
    """A random layer: everything is found where it was written, and writing it again gives the same bytes."""
    random = np.random.default_rng(seed)
    shape = random_shape(seed, widths, random)
    layer = random_layer(shape, random)
    case = vary(shape, layer, random)
    table = layer_table(shape, layer)
    content = bytes(table.content)
    found = reading_of(content, layer)
    assert [*found.all_faults, *found.unknown, *order_faults(found)] == [], shape
    for role, matrix in found.matrices.items():
        assert matrix.form is not None
        assert (matrix.form.layout.weight_type, matrix.form.rule) == (shape.kind, shape.rule), (role, shape)
        assert matrix.form.layout.rows == (shape.qkv_rows if role[0] in "qkv" else 32) or case == 5
        assert matrix.offsets[0] == table.places[role] or case == 5
        assert matrix.ties == matrix.other_signs == 0
    assert filled(memoryview(content), found, read(layer)) == content


def test_rows_that_are_stored_in_two_forms() -> None:
    """Matrices that start with the same rows, some in blocks of 64 rows and some of 32."""
    check_layer(204, WIDTHS)


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_random_layers(first: int) -> None:
    for seed in range(first, first + 20):
        check_layer(seed, WIDTHS[:7] if seed % 10 else WIDTHS)


@pytest.mark.soak
def test_a_thousand_random_layers() -> None:
    for seed in range(1000):
        check_layer(seed, WIDTHS)


SHAPES = {
    "s8 A": Shape(64, 4, 2, 32, 608),
    "s8 B": Shape(608, 2, 2, 64, 64, rule="B", qk_norm=True),
    "s4 A": Shape(128, 4, 2, 64, 608, kind="s4", qkv_rows=64),
    "s4 B": Shape(64, 2, 1, 128, 608, kind="s4", rule="B", qk_norm=True),
}


class Example:
    """A layer and its table, to plant faults in."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.layer = random_layer(shape, np.random.default_rng(7))
        self.table = layer_table(shape, self.layer)
        self.content = bytearray(self.table.content)

    def rows(self, role: str) -> int:
        return self.shape.qkv_rows if role[0] in "qkv" else 32

    def block(self, role: str, index: int) -> bytes:
        rows = self.rows(role)
        weight = self.layer[role][index * rows : (index + 1) * rows]
        return block_bytes(weight, self.shape.kind, self.shape.rule)

    def replace(self, old: bytes, new: bytes) -> None:
        assert self.content.count(old) == 1
        assert len(old) == len(new)
        self.content[:] = self.content.replace(old, new)

    def faults(self) -> list[str]:
        return reading_of(bytes(self.content), self.layer).all_faults


@pytest.fixture(params=SHAPES)
def example(request: pytest.FixtureRequest) -> Example:
    return Example(SHAPES[request.param])


def test_examples_have_no_faults(example: Example) -> None:
    assert example.faults() == []


def test_a_code_that_is_one_off(example: Example) -> None:
    """With the sum of its row, so that the block agrees with itself: only the checkpoint tells."""
    random = np.random.default_rng(0)
    clean = bytes(example.content)
    for role in example.shape.matrices:
        weight, rows = example.layer[role], example.rows(role)
        block = int(random.integers(len(weight) // rows))
        row, column = int(random.integers(rows)), int(random.integers(weight.shape[1]))
        with_fault, found, expected = _with_code(example, role, block, row, column)
        example.content[:] = clean
        example.replace(example.block(role, block), with_fault)
        place = f"row {block * rows + row}, column {column}: {found} instead of {expected}"
        assert example.faults() == [f"{role} has 1 wrong codes, the first in {place}"]


def _with_code(example: Example, role: str, block: int, row: int, column: int) -> tuple[bytes, int, int]:
    """A block in which one code is one off; the code, and the right one."""
    kind, rule, rows = example.shape.kind, example.shape.rule, example.rows(role)
    weight = example.layer[role][block * rows : (block + 1) * rows]
    scales = [row_scale(one, kind, rule) for one in weight]
    codes = [row_codes(one, scale, kind, rule) for one, scale in zip(weight, scales, strict=True)]
    expected = codes[row][column]
    codes[row][column] += -1 if expected > 0 else 1
    data, start = b"", 0
    for width in parts(weight.shape[1]):
        data += part_bytes([one[start : start + width] for one in codes], scales, kind)
        start += width
    return data, codes[row][column], expected


def test_every_flipped_bit_of_the_weights(example: Example) -> None:
    """A sample of them, in blocks and norms."""
    clean = bytes(example.content)
    constants = reading_of(clean, example.layer).constants
    weights = np.ones(len(clean), np.bool_)
    for run in constants:
        weights[run.offset : run.offset + run.length] = False
    for place in np.random.default_rng(2).choice(np.nonzero(weights)[0], 25, replace=False).tolist():
        example.content[:] = clean
        example.content[place] ^= 1 << place % 8
        assert example.faults(), place


@pytest.mark.parametrize("part", ["sum", "zeros", "scale"])
def test_a_changed_tail(example: Example, part: str) -> None:
    """The tail of the last part of o_proj's second block, or its first."""
    block = example.block("o_proj.weight", example.shape.hidden // 32 - 1)
    back = {"scale": 128, "zeros": 256, "sum": 512 if example.shape.kind == "s8" else 384}[part]
    changed = bytearray(block)
    changed[-back + 2] ^= 1
    example.replace(block, bytes(changed))
    (fault,) = example.faults()
    row = example.shape.hidden - 32
    if part == "scale":
        assert fault == f"o_proj.weight has 1 wrong scales, the first in row {row}"
    elif part == "sum":
        assert fault.startswith(
            "o_proj.weight has sums or padding that do not belong to its codes in 1 blocks, the first"
        )
    else:
        assert fault.startswith("o_proj.weight has bytes that are not 0, but are in all known files, in 1 blocks, the")


def test_a_changed_scale_in_every_matrix(example: Example) -> None:
    """In the first block, whose place only its codes could show, and in the last."""
    clean = bytes(example.content)
    for role in example.shape.matrices:
        for block in {0, len(example.layer[role]) // example.rows(role) - 1}:
            example.content[:] = clean
            old = example.block(role, block)
            changed = bytearray(old)
            changed[-2] ^= 1
            example.replace(old, bytes(changed))
            faults = example.faults()
            first = (block + 1) * example.rows(role) - example.rows(role)
            blocks = len(example.layer[role]) // example.rows(role)
            assert faults in (
                [f"{role} has 1 wrong scales, the first in row {first + example.rows(role) - 1}"],
                [
                    f"{role} has 1 of {blocks} blocks that are not in the file, the first has rows {first} to "
                    f"{first + example.rows(role) - 1}"
                ],
                [f"{role} is not in the file"],
            )


def test_a_changed_norm(example: Example) -> None:
    clean = bytes(example.content)
    for role in example.shape.vectors:
        example.content[:] = clean
        example.content[example.table.places[role]] ^= 1
        assert example.faults() == [f"{role} is not in the file"]


def test_rows_of_another_matrix(example: Example) -> None:
    """One block of up_proj in place of one of gate_proj."""
    example.replace(example.block("gate_proj.weight", 1), example.block("up_proj.weight", 0))
    faults = example.faults()
    blocks = example.shape.inner // 32
    message = f"gate_proj.weight has 1 of {blocks} blocks that are not in the file, the first has rows 32 to 63"
    assert message in faults
    assert any(fault.startswith("up_proj.weight has the block of row 0 twice, also at byte") for fault in faults)


def test_another_layer(example: Example) -> None:
    other = random_layer(example.shape, np.random.default_rng(8))
    faults = reading_of(bytes(example.content), other).all_faults
    assert faults == [f"{role} is not in the file" for role in other]


def test_other_codes_for_the_same_scales(example: Example) -> None:
    """As GPTQ chooses them: the scales are the checkpoint's, many codes are not."""
    weight = example.layer["down_proj.weight"]
    peaks = np.abs(weight).argmax(axis=1)
    moved = weight + np.abs(weight).max(axis=1, keepdims=True) * np.float32(0.1)
    moved[np.arange(len(weight)), peaks] = weight[np.arange(len(weight)), peaks]
    moved = np.clip(moved, -np.abs(weight).max(axis=1, keepdims=True) * np.float32(0.99), None)
    moved = np.minimum(moved, np.abs(weight).max(axis=1, keepdims=True) * np.float32(0.99))
    moved[np.arange(len(weight)), peaks] = weight[np.arange(len(weight)), peaks]
    table = layer_table(example.shape, example.layer | {"down_proj.weight": moved})
    (fault,) = reading_of(bytes(table.content), example.layer).all_faults
    assert "down_proj.weight has" in fault
    assert "wrong codes" in fault


def test_ties_rounded_by_another_arithmetic(example: Example) -> None:
    """Rule B by fp64 division and rule A by fp32 addition give other codes for weights that are almost ties. They are
    reported, and such a table is not written."""
    scale = np.float32(0.01)
    levels = 128 if example.shape.kind == "s8" else 8
    top = levels if example.shape.rule == "A" else levels - 1
    weight = example.layer["up_proj.weight"]
    weight[:] = np.clip(weight, -0.03, 0.03)
    weight[:, 0] = -top * scale
    weight[5, 7] = np.float32(2.5) * scale
    table = layer_table(example.shape, example.layer)
    codes = row_codes(
        weight[5], row_scale(weight[5], example.shape.kind, example.shape.rule), example.shape.kind, example.shape.rule
    )
    example.content = bytearray(table.content)
    other = {2: 3, 3: 2}[codes[7]]
    new = weight.copy()
    new[5, 7] = np.float32(other) * scale
    changed = layer_table(example.shape, example.layer | {"up_proj.weight": new})
    found = reading_of(bytes(changed.content), example.layer)
    assert found.all_faults == []
    assert found.matrices["up_proj.weight"].ties == 1
    with pytest.raises(AxzooError, match=r"up_proj\.weight can be read, but its rounding is not known well enough"):
        filled(memoryview(bytes(changed.content)), found, read(example.layer))


def test_more_ties_than_rounding_explains(example: Example) -> None:
    scale = np.float32(0.01)
    top = (128 if example.shape.kind == "s8" else 8) - (example.shape.rule == "B")
    weight = example.layer["up_proj.weight"]
    weight[:] = np.float32(2.5) * scale
    weight[:, 0] = -top * scale
    other = weight.copy()
    lower = row_codes(weight[0], scale, example.shape.kind, example.shape.rule)[1] == 2
    other[:, 1:] = np.float32(3 if lower else 2) * scale
    table = layer_table(example.shape, example.layer | {"up_proj.weight": other})
    (fault,) = reading_of(bytes(table.content), example.layer).all_faults
    assert "codes that are rounded the other way, more than another arithmetic explains" in fault


@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp32", "fp8_e4m3"])
def test_float_types(kind: str) -> None:
    example = Example(Shape(64, 4, 2, 32, 96, kind=kind))
    found = reading_of(bytes(example.content), example.layer)
    assert found.all_faults == []
    assert {matrix.form.layout.weight_type for matrix in found.matrices.values() if matrix.form} == {kind}
    assert filled(memoryview(bytes(example.content)), found, read(example.layer)) == bytes(example.content)
    example.content[example.table.places["o_proj.weight"] + 4 * 70 + 3] ^= 1
    (fault,) = example.faults()
    assert fault.startswith("o_proj.weight has 1 wrong values, the first in row 6, column 2: ")


def test_float_types_that_store_a_checkpoint_alike() -> None:
    """Weights that are not small are the same in bf16 and in fp32, and here in fp16."""
    example = Example(Shape(64, 4, 2, 32, 96, kind="bf16"))
    for role in example.shape.matrices:
        example.layer[role] = example.layer[role].astype(ml_dtypes.bfloat16).astype(np.float32)
    found = reading_of(bytes(example.content), example.layer)
    form = found.matrices["q_proj.weight"].form
    assert form is not None
    assert (form.layout.weight_type, form.equal_types) == ("fp32", ("fp16", "bf16"))
    assert filled(memoryview(bytes(example.content)), found, read(example.layer)) == bytes(example.content)
    other = random_layer(example.shape, np.random.default_rng(9))
    with pytest.raises(AxzooError, match="its possible types round to different values"):
        filled(memoryview(bytes(example.content)), found, read(other))


def test_a_cut_that_nobody_has_seen() -> None:
    """1120 columns may be stored as 576 + 544 or as 32 + 544 + 544: the file tells."""
    layer = {"o_proj.weight": random_layer(Shape(64, 35, 1, 32, 64), np.random.default_rng(0))["o_proj.weight"]}
    for widths in ([576, 544], [32, 544, 544]):
        table = Table()
        table.add_rows("o_proj.weight", layer["o_proj.weight"], 32, "s8", "A", widths)
        found = reading_of(bytes(table.content), layer)
        assert found.all_faults == []
        form = found.matrices["o_proj.weight"].form
        assert form is not None
        assert form.layout.widths == tuple(widths)


def test_a_post_layer() -> None:
    """Its table stores equal blocks of vocabulary rows once."""
    random = np.random.default_rng(0)
    head = random.standard_normal((32 * 12, 64)).astype(np.float32)
    head[32 * 9 :] = np.tile(head[32 * 8 : 32 * 9], (3, 1))
    layer = {"norm.weight": random.standard_normal(64).astype(np.float32), "lm_head.weight": head}
    table = post_table(layer["norm.weight"], head)
    found = reading_of(bytes(table.content), layer)
    assert found.all_faults == []
    assert len(set(found.matrices["lm_head.weight"].offsets.tolist())) == 9
    assert filled(memoryview(bytes(table.content)), found, read(layer)) == bytes(table.content)
    layer["lm_head.weight"] = head.copy()
    layer["lm_head.weight"][-1, 0] += 1
    with pytest.raises(AxzooError, match="shares bytes with another tensor in the table"):
        filled(memoryview(bytes(table.content)), found, read(layer))


def test_rows_of_zeros(example: Example) -> None:
    """Whatever scale the file gives them, they are zeros; but nobody knows which scale the compiler would write."""
    example.layer["o_proj.weight"][2] = 0
    example.content = layer_table(example.shape, example.layer).content
    found = reading_of(bytes(example.content), example.layer)
    assert found.all_faults == []
    assert found.matrices["o_proj.weight"].zero_rows == 1
    with pytest.raises(AxzooError, match=r"o_proj\.weight can be read, but"):
        filled(memoryview(bytes(example.content)), found, read(example.layer))


def test_the_other_sign_of_a_row_with_both() -> None:
    """Rule A does not say which of two equal magnitudes gets the extreme code."""
    example = Example(SHAPES["s4 A"])
    weight = example.layer["o_proj.weight"]
    peak = np.abs(weight).max()
    weight[4, :2] = peak, -peak
    turned = weight.copy()
    turned[4] = weight[4, ::-1]  # the second comes first
    turned[4, :2], turned[4, -2:] = (-peak, peak), turned[4, :2].copy()
    mirrored = example.layer | {"o_proj.weight": weight.copy()}
    mirrored["o_proj.weight"][4, 0] = np.nextafter(peak, np.float32(0))  # so that the writer takes the second
    table = layer_table(example.shape, mirrored)
    found = reading_of(bytes(table.content), example.layer)
    assert found.all_faults == []
    assert found.matrices["o_proj.weight"].other_signs == 1
    with pytest.raises(AxzooError, match=r"o_proj\.weight can be read, but"):
        filled(memoryview(bytes(table.content)), found, read(example.layer))


def test_rows_of_equal_scales() -> None:
    """Ternary weights have one scale, so that every block could be in the place of every other."""
    example = Example(Shape(32, 70, 1, 32, 2400))
    random = np.random.default_rng(0)
    for role in example.shape.matrices:
        example.layer[role] = random.integers(-1, 2, example.layer[role].shape).astype(np.float32)
        example.layer[role][:, 0] = 1
    table = layer_table(example.shape, example.layer)
    found = reading_of(bytes(table.content), example.layer)
    assert found.all_faults == []


def test_writing_other_weights(example: Example) -> None:
    """The table of one layer, filled with another's weights, is the other's table."""
    other = random_layer(example.shape, np.random.default_rng(9))
    found = reading_of(bytes(example.content), example.layer)
    assert filled(memoryview(bytes(example.content)), found, read(other)) == bytes(
        layer_table(example.shape, other).content
    )


REFUSED: dict[str, tuple[Callable[[dict[str, Matrix]], None], str]] = {
    "a row of zeros": (lambda layer: layer["o_proj.weight"][3].fill(0), "o_proj.weight has rows of zeros"),
    "a repeated block": (
        lambda layer: layer["up_proj.weight"].__setitem__(slice(32, 64), layer["up_proj.weight"][:32]),
        "two blocks of rows have equal bytes",
    ),
    "a unit norm": (lambda layer: layer["mlp_norm.weight"].fill(1), "mlp_norm.weight is left out of the table if"),
    "a large sum": (lambda layer: layer["down_proj.weight"].fill(1), "sum up to more than 65535"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_are_not_written(name: str) -> None:
    example = Example(Shape(64, 4, 2, 32, 608, rule="B"))
    found = reading_of(bytes(example.content), example.layer)
    other = random_layer(example.shape, np.random.default_rng(9))
    change, message = REFUSED[name]
    change(other)
    with pytest.raises(AxzooError, match=message):
        filled(memoryview(bytes(example.content)), found, read(other))
    if name == "a large sum":
        other = example.layer | {"down_proj.weight": other["down_proj.weight"]}
        assert reading_of(bytes(example.content), other).all_faults == ["down_proj.weight is not in the file"]


def _hostile_tables(example: Example) -> dict[str, bytes]:
    """Tables that repeat what the reader searches for."""
    scales = np.array(
        [row_scale(row, example.shape.kind, example.shape.rule) for row in example.layer["v_proj.weight"]]
    )
    size = 4 << 20
    block = example.block("v_proj.weight", 0)
    return {
        "empty": b"",
        "one byte": b"x",
        "zeros": bytes(size),
        "NaN": b"\xff" * size,
        "one scale": scales[:1].astype("<f4").tobytes() * (size // 4),
        "all scales": scales.astype("<f4").tobytes() * (size // scales.size // 4),
        "the same block": block * (size // len(block)),
        "all but the end": bytes(example.content[:-600]),
        "shifted by one byte": b"x" + bytes(example.content),
    }


@pytest.mark.parametrize("name", _hostile_tables(Example(SHAPES["s8 A"])))
def test_hostile_tables(name: str) -> None:
    """They are read in bounded time and memory, and are never taken for the layer's."""
    example = Example(SHAPES["s8 A"])
    table = _hostile_tables(example)[name]
    start = time.process_time()
    tracemalloc.start()
    try:
        assert reading_of(table, example.layer).all_faults
        assert tracemalloc.get_traced_memory()[1] < 256 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 10


def test_equal_rows_everywhere() -> None:
    """A checkpoint and a table in which every block is the same."""
    shape = Shape(480, 15, 1, 32, 480)
    layer = {role: np.ones(size, np.float32) for role, size in shape.matrices.items()}
    layer |= {role: np.full(size, 2, np.float32) for role, size in shape.vectors.items()}
    table = layer_table(shape, layer)
    start = time.process_time()
    assert reading_of(bytes(table.content), layer).all_faults == []
    assert reading_of(bytes(table.content)[4:] * 50, layer).all_faults
    assert time.process_time() - start < 10


def test_a_second_copy_in_another_form() -> None:
    """It belongs to no matrix, so nothing says which of the two the file's program uses."""
    example = Example(Shape(64, 2, 2, 64, 96, kind="s4"))
    copies = [block_bytes(example.layer["v_proj.weight"][start : start + 64], "s4", "A") for start in (0, 64)]
    example.content += b"".join(copies)
    assert "v_proj.weight is in the file in more than one form" in example.faults()
