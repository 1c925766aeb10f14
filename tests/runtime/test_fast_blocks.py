"""Packing weights into blocks does not change their values."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from axzoo.runtime.fast.kernels import BLOCK_SIZE, EIGHT_BIT, pack_blocks


@given(st.sampled_from(["int8", "int4"]), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(0, 9))
def test_packed_weights_have_the_same_values(kind: str, groups: int, blocks: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = 8 if kind == "int8" else 4
    rows = groups * blocks * BLOCK_SIZE
    codes = rng.integers(-(1 << bits - 1), 1 << bits - 1, (rows, columns)).astype(np.int8)
    scales = rng.standard_normal((groups, columns)).astype(np.float32)
    packed, block_scales = pack_blocks(codes if bits == 8 else codes.astype(ml_dtypes.int4), scales)

    assert packed.shape == (columns, groups * blocks, BLOCK_SIZE * bits // 8)
    halves = (
        packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], BLOCK_SIZE)
    )
    numbers = (halves.astype(np.float32) - (1 << bits - 1)) * block_scales[..., None]
    expected = codes.astype(np.float32) * np.repeat(scales, rows // groups, axis=0)
    assert np.array_equal(numbers.reshape(columns, rows), expected.T)


@pytest.mark.parametrize(
    ("rows", "groups", "supported"), [(32, 1, True), (48, 1, False), (576, 1, True), (128, 4, True), (128, 8, False)]
)
def test_only_whole_blocks_are_supported(rows: int, groups: int, supported: bool) -> None:
    assert EIGHT_BIT.supports(rows, groups) is supported
