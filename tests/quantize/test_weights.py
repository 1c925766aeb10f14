"""Weights as files store them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from axzoo.errors import AxzooError
from axzoo.quantize.rows import dequantize_rows
from axzoo.quantize.weights import LAYER_RULE, POST_RULE, store_weight
from axzoo.recipe import WEIGHT_TYPES

WEIGHT: NDArray[np.float32] = np.random.default_rng(0).standard_normal((23, 17)).astype(np.float32)
FLOATS: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("weight_type", FLOATS)
def test_floats_are_transposed_and_rounded(weight_type: str) -> None:
    stored = store_weight([WEIGHT], WEIGHT.shape, weight_type, LAYER_RULE)
    rounded = WEIGHT.astype(FLOATS[weight_type])
    assert stored.values.dtype == FLOATS[weight_type]
    assert stored.scales is None
    assert_array_equal(stored.values.view(np.uint8), np.ascontiguousarray(rounded.T).view(np.uint8))
    assert_array_equal(stored.dequantized(), rounded.astype(np.float32).T)
    assert stored.error == pytest.approx(_relative_error(rounded.astype(np.float32)), rel=1e-9)
    assert (stored.error == 0) == (weight_type == "fp32")


@pytest.mark.parametrize("rule", [LAYER_RULE, POST_RULE])
def test_s8_is_transposed_codes_with_a_scale_per_column(rule: Any) -> None:
    codes, scales = rule(WEIGHT)
    stored = store_weight([WEIGHT], WEIGHT.shape, "s8", rule)
    assert_array_equal(stored.values, codes.T)
    assert_array_equal(stored.scales, scales)
    assert_array_equal(stored.dequantized(), dequantize_rows(codes, scales).T)
    assert stored.error == pytest.approx(_relative_error(dequantize_rows(codes, scales)), rel=1e-6)
    assert 0.001 < stored.error < 0.02


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
@given(cuts=st.lists(st.integers(0, len(WEIGHT)), max_size=5).map(sorted))
def test_blocks_are_the_whole_matrix(weight_type: str, cuts: list[int]) -> None:
    whole = store_weight([WEIGHT], WEIGHT.shape, weight_type, LAYER_RULE)
    blocks = [block for block in np.split(WEIGHT, cuts) if len(block)]
    parts = store_weight(blocks, WEIGHT.shape, weight_type, LAYER_RULE)
    assert_array_equal(parts.values.view(np.uint8), whole.values.view(np.uint8))
    if whole.scales is not None:
        assert_array_equal(parts.scales, whole.scales)
    assert parts.error == pytest.approx(whole.error, rel=1e-12)


@pytest.mark.parametrize("stored_as", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_the_checkpoints_dtype_does_not_matter(stored_as: Any, weight_type: str) -> None:
    short = WEIGHT.astype(stored_as)
    found = store_weight([short], WEIGHT.shape, weight_type, LAYER_RULE)
    wanted = store_weight([short.astype(np.float32)], WEIGHT.shape, weight_type, LAYER_RULE)
    assert_array_equal(found.values.view(np.uint8), wanted.values.view(np.uint8))


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_zeros_have_no_error(weight_type: str) -> None:
    stored = store_weight([np.zeros((3, 4), np.float32)], (3, 4), weight_type, LAYER_RULE)
    assert stored.error == 0
    assert not stored.dequantized().any()


def test_huge_weights_have_a_finite_error() -> None:
    """Their squares are beyond fp32."""
    stored = store_weight([WEIGHT * np.float32(1e30)], WEIGHT.shape, "s8", LAYER_RULE)
    assert stored.error == pytest.approx(store_weight([WEIGHT], WEIGHT.shape, "s8", LAYER_RULE).error, rel=1e-3)


def test_a_weight_beyond_the_type_is_refused() -> None:
    weight = WEIGHT.copy()
    weight[3, 5] = 7e4
    store_weight([weight], weight.shape, "bf16", LAYER_RULE)
    with pytest.raises(AxzooError, match="a weight of magnitude 70000 is beyond fp16: use fp32"):
        store_weight([weight], weight.shape, "fp16", LAYER_RULE)


def _relative_error(restored: NDArray[np.float32]) -> float:
    original = WEIGHT.astype(np.float64)
    return float(np.linalg.norm(restored - original) / np.linalg.norm(original))
