"""Weights on the compiler's grid: the compiler's rules give back every code."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from table_writer import Matrix, row_codes, row_scale

from axzoo.backends.pulsar2.grid_weights import ChangedCode, grid_weight, vendor_format
from axzoo.backends.pulsar2.vendor_rules import RULES, RuleName
from axzoo.calibrate.rounding import GptqFormat, invert_hessian
from axzoo.core.dtypes import NUMPY_DTYPES
from axzoo.core.errors import AxzooError
from axzoo.weights.encoding import layer_format
from axzoo.weights.recipe import Recipe
from axzoo.weights.stored import StoredWeight, store_weight

KINDS = ("s8", "s4")
LEVELS = {"s8": 128, "s4": 8}
DTYPES = {"s8": np.dtype(np.int8), "s4": NUMPY_DTYPES["int4"]}


def stored(codes: Any, scales: Any, kind: str) -> StoredWeight:
    """Codes [rows, columns] and scales [rows] as calibration stores them."""
    return StoredWeight(np.array(codes, np.int8).T.astype(DTYPES[kind]), np.array(scales, np.float32)[None], 0.0)


def compiled(values: Matrix, kind: str, rule: str) -> tuple[NDArray[np.int64], Matrix]:
    """The codes and scales that the compiler gives to weights, by the independent writer."""
    scales = [row_scale(row, kind, rule) or np.float32(1) for row in values]
    codes = [row_codes(row, scale, kind, rule) for row, scale in zip(values, scales, strict=True)]
    return np.array(codes), np.array(scales, np.float32)


def gptq(kind: str, rule: RuleName | None, rows: int = 64, columns: int = 200) -> tuple[Matrix, StoredWeight]:
    """A random matrix, and its codes by GPTQ for the compiler's format, or for that of layers if `rule` is None."""
    random = np.random.default_rng(5)
    weight = random.standard_normal((rows, columns)).astype(np.float32) * np.float32(0.02)
    inputs = torch.from_numpy(random.standard_normal((300, columns)).astype(np.float32)) @ torch.diag(
        torch.linspace(0.1, 3, columns)
    )
    base = layer_format(Recipe(kind)) if rule is None else vendor_format(kind, rule)  # type: ignore[arg-type]
    form = GptqFormat(base, invert_hessian(inputs.T @ inputs), None)  # type: ignore[arg-type]
    return weight, store_weight("q_proj.weight", [weight], (rows, columns), form)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_every_code_of_gptq_is_kept(kind: str, rule: RuleName) -> None:
    """And where none had to be changed, the decoded weights are those of the desk twin."""
    _, codes = gptq(kind, rule)
    grid = grid_weight("q_proj.weight", codes, kind, rule)
    found, scales = compiled(grid.values, kind, rule)
    assert np.array_equal(found, grid.codes)
    assert np.array_equal(scales, grid.scales)
    twin, decoded = codes.dequantized().T, found.astype(np.float32) * scales[:, None]
    off = decoded != twin if rule == "A" else np.abs(decoded - twin) > np.abs(twin) * 2.0**-22
    assert set(map(tuple, np.argwhere(off))) == {(change.row, change.column) for change in grid.changes}
    assert len(grid.changes) < 64


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 1 << 30),
    columns=st.integers(1, 40),
    spread=st.floats(0.01, 1),
    exponent=st.integers(-60, 20),
)
def test_any_codes_and_scales(kind: str, rule: RuleName, seed: int, columns: int, spread: float, exponent: int) -> None:
    """All codes are kept but those that are changed, at most one per row for rule A; for rule B also the code that it
    does not have."""
    random = np.random.default_rng(seed)
    levels = LEVELS[kind]
    codes = np.clip(np.rint(random.standard_normal((8, columns)) * levels * spread), -levels, levels - 1)
    scales = (random.uniform(0.5, 2, 8) * random.choice([-1, 1], 8) * 2.0**exponent).astype(np.float32)
    grid = grid_weight("q_proj.weight", stored(codes, scales, kind), kind, rule)
    found, own = compiled(grid.values, kind, rule)
    assert np.array_equal(found, grid.codes)
    assert np.array_equal(own, grid.scales)
    signs = np.where(np.signbit(own) == np.signbit(scales), 1, -1)
    signs[~codes.any(axis=1)] = 1
    differ = {(row, column) for row, column in np.argwhere(found * signs[:, None] != codes)}
    # a code changed to the end beyond its own type is 128 of the given scale, which the sign turns into a code
    assert differ == {(change.row, change.column) for change in grid.changes}
    if rule == "A":
        assert len({row for row, _ in differ}) == len(differ)
        for change in grid.changes:
            assert abs(change.old) == np.abs(codes[change.row]).max()
            assert abs(change.new) == levels


def test_a_row_with_its_extreme_code_is_not_changed() -> None:
    codes = [[-8, 7, 0], [7, -8, -8], [0, 0, 0]]
    grid = grid_weight("x", stored(codes, [0.5, -0.25, 1], "s4"), "s4", "A")
    assert grid.changes == ()
    assert grid.values.tolist() == [[-4, 3.5, 0], [-1.75, 2, 2], [0, 0, 0]]
    assert grid.codes.tolist() == codes
    assert grid.scales.tolist() == [0.5, -0.25, 1]


def test_the_code_that_is_changed() -> None:
    """The one that is closest to an end of the grid, whose sign the compiler gives to the scale."""
    grid = grid_weight("x", stored([[-6, 7, 1], [-6, 5, 1], [3, -3, 0]], [1, 1, 1], "s4"), "s4", "A")
    changes = [(change.row, change.column, change.old, change.new) for change in grid.changes]
    assert changes == [(0, 1, 7, 8), (1, 0, -6, -8), (2, 1, -3, -8)]
    assert grid.values.tolist() == [[-6, 8, 1], [-8, 5, 1], [3, -8, 0]]
    assert grid.codes.tolist() == [[6, -8, -1], [-8, 5, 1], [3, -8, 0]]
    assert grid.scales.tolist() == [-1, 1, 1]
    assert grid.changes[1] == ChangedCode(1, 0, -6, -8, pytest.approx(2 / np.sqrt(62)))


def test_codes_of_rule_a_under_rule_b() -> None:
    """Rule B has no code -8: use the compiler's own format when codes are chosen."""
    grid = grid_weight("x", stored([[-8, 7, 1], [-5, 2, 0]], [1, -1], "s4"), "s4", "B")
    changes = [(change.row, change.column, change.old, change.new) for change in grid.changes]
    assert changes == [(0, 0, -8, -7), (1, 0, -5, -7)]
    assert grid.values.tolist() == [[-7, 7, 1], [7, -2, 0]]
    assert grid.codes.tolist() == [[-7, 7, 1], [7, -2, 0]]
    _, codes = gptq("s4", "B")
    assert len(grid_weight("x", codes, "s4", "B").changes) < len(
        grid_weight("x", gptq("s4", None)[1], "s4", "B").changes
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_format_of_layers_is_rule_a(kind: str) -> None:
    """GPTQ gives the same codes and scales for it, up to ties."""
    ours, theirs = gptq(kind, "A")[1], gptq(kind, None)[1]
    assert np.array_equal(ours.scales, theirs.scales)
    assert (ours.values.astype(np.int8) != theirs.values.astype(np.int8)).mean() < 1e-3


LOST = {("bf16", "s8", "A"): (1e-4, 1e-2), ("bf16", "s8", "B"): (1e-4, 1e-2)}
"""The share of codes that move if a slice stores its weights in 16 bits: bf16 moves the s8 codes that are large."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_what_sixteen_bits_lose(dtype: str, kind: str, rule: RuleName) -> None:
    _, codes = gptq(kind, rule)
    grid = grid_weight("q_proj.weight", codes, kind, rule)
    half = np.float16 if dtype == "fp16" else ml_dtypes.bfloat16
    found, _ = compiled(grid.values.astype(half).astype(np.float32), kind, rule)
    least, most = LOST.get((dtype, kind, rule), (0.0, 0.0))
    assert least <= (found != grid.codes).mean() <= most


_CODES = np.ones((4, 2), np.int8)
WITHOUT_A_GRID = {
    "is not stored as s8 or s4 codes": store_weight(
        "q", [np.ones((2, 4), np.float32)], (2, 4), layer_format(Recipe("bf16"))
    ),
    "has 2 scales per row": StoredWeight(_CODES, np.ones((2, 2), np.float32), 0),
    "has a scale that is not a normal number": StoredWeight(_CODES, np.full((1, 2), np.nan, np.float32), 0),
}


@pytest.mark.parametrize("message", WITHOUT_A_GRID)
def test_weights_without_a_grid(message: str) -> None:
    with pytest.raises(AxzooError, match=f"q_proj {message}"):
        grid_weight("q_proj", WITHOUT_A_GRID[message], "s8", "A")


def test_scales_of_zero() -> None:
    with pytest.raises(AxzooError, match="q_proj has a scale that is not a normal number"):
        grid_weight("q_proj", StoredWeight(_CODES, np.zeros((1, 2), np.float32), 0), "s8", "A")
