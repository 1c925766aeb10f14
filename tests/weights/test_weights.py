"""Stored weights in every format that a recipe supports."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from axzoo.core.errors import AxzooError
from axzoo.weights.encoding import WeightFormat, layer_format, post_format
from axzoo.weights.recipe import POST_WEIGHT_TYPES, WEIGHT_TYPES, Recipe
from axzoo.weights.scales import full_range_codes, full_range_scales, symmetric_codes, symmetric_scales
from axzoo.weights.stored import StoredWeight, dequantize, store_weight

WEIGHT: NDArray[np.float32] = np.random.default_rng(0).standard_normal((23, 128)).astype(np.float32)
FLOATS: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
INTEGERS = pytest.mark.parametrize("weight_type, levels", [("s8", 128), ("s4", 8)])

FORMATS = {
    **{name: layer_format(Recipe(weight_type=name)) for name in WEIGHT_TYPES},
    **{f"post {name}": post_format(name) for name in POST_WEIGHT_TYPES},
    "s4 g32": layer_format(Recipe(weight_type="s4", weight_group_size=32)),
    "s8 g128": layer_format(Recipe(weight_type="s8", weight_group_size=128)),
    "s4 mse": layer_format(Recipe(weight_type="s4", scale_rule="mse")),
    "s8 g64 mse": layer_format(Recipe(weight_type="s8", weight_group_size=64, scale_rule="mse")),
}
ALL = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS.keys())


def _store(form: WeightFormat, weight: NDArray[Any] = WEIGHT) -> StoredWeight:
    return store_weight("q_proj.weight", [weight], (weight.shape[0], weight.shape[1]), form)


@pytest.mark.parametrize("name", FLOATS)
def test_floats_are_transposed_and_rounded(name: str) -> None:
    stored = _store(FORMATS[name])
    rounded = WEIGHT.astype(FLOATS[name])
    assert stored.values.dtype == FLOATS[name]
    assert stored.scales.shape == (0, 23)
    assert_array_equal(stored.values.view(np.uint8), np.ascontiguousarray(rounded.T).view(np.uint8))
    assert_array_equal(stored.dequantized(), rounded.astype(np.float32).T)
    assert (stored.error == 0) == (name == "fp32")


@INTEGERS
def test_layers_integers_are_transposed_codes_of_rule_a(weight_type: Any, levels: int) -> None:
    scales = full_range_scales(WEIGHT, levels)
    stored = _store(FORMATS[weight_type])
    assert stored.values.dtype == {"s8": np.int8, "s4": ml_dtypes.int4}[weight_type]
    assert_array_equal(stored.values.astype(np.int8), full_range_codes(WEIGHT, scales, levels).T)
    assert_array_equal(stored.scales, scales[None])
    bounds = {"s8": (0.001, 0.02), "s4": (0.05, 0.2)}[weight_type]
    assert bounds[0] < stored.error < bounds[1]


@INTEGERS
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("scale_rule", ["vendor", "mse"])
def test_groups_are_encoded_like_rows(weight_type: Any, levels: int, group: Any, scale_rule: Any) -> None:
    stored = _store(layer_format(Recipe(weight_type=weight_type, weight_group_size=group, scale_rule=scale_rule)))
    assert stored.values.shape == (128, 23)
    assert stored.scales.shape == (128 // group, 23)
    per_row = layer_format(Recipe(weight_type=weight_type, scale_rule=scale_rule))
    for index in range(128 // group):
        columns = slice(group * index, group * (index + 1))
        alone = _store(per_row, np.ascontiguousarray(WEIGHT[:, columns]))
        assert_array_equal(stored.values[columns].astype(np.int8), alone.values.astype(np.int8))
        assert_array_equal(stored.scales[index], alone.scales[0])
        assert_array_equal(stored.dequantized()[columns], alone.dequantized())


def test_searched_scales_store_with_less_error() -> None:
    plain, searched = _store(FORMATS["s4"]), _store(FORMATS["s4 mse"])
    assert searched.error < 0.95 * plain.error
    assert _store(FORMATS["s4 g32"]).error < 0.95 * plain.error


def test_the_post_layers_integers_follow_rule_b() -> None:
    scales = symmetric_scales(WEIGHT, 127)
    stored = _store(FORMATS["post s8"])
    assert_array_equal(stored.values, symmetric_codes(WEIGHT, scales, 127).T)
    assert_array_equal(stored.scales, scales[None])


@pytest.mark.parametrize("name, largest, error", [("fp8_e4m3", 448, 0.03), ("fp8_e5m2", 57344, 0.06)])
def test_the_post_layers_fp8_formats(name: Any, largest: int, error: float) -> None:
    stored = _store(post_format(name))
    assert stored.values.dtype == {"fp8_e4m3": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2}[name]
    assert_array_equal(stored.scales[0], np.abs(WEIGHT).max(axis=1) / np.float32(largest))
    assert_array_equal(np.abs(stored.values.astype(np.float32)).max(axis=0), largest)
    assert error / 3 < stored.error < error


@ALL
def test_the_error_is_that_of_the_dequantized_weights(form: WeightFormat) -> None:
    stored = _store(form)
    assert stored.error == pytest.approx(_relative_error(stored.dequantized().T), rel=1e-6)
    assert_array_equal(stored.dequantized().T, dequantize(stored.values.T, stored.scales.T))


@ALL
@given(cuts=st.lists(st.integers(0, len(WEIGHT)), max_size=5).map(sorted))
def test_the_result_does_not_depend_on_the_blocks(form: WeightFormat, cuts: list[int]) -> None:
    whole = _store(form)
    blocks = [block for block in np.split(WEIGHT, cuts) if len(block)]
    parts = store_weight("q_proj.weight", blocks, (23, 128), form)
    assert_array_equal(parts.values.view(np.uint8), whole.values.view(np.uint8))
    assert_array_equal(parts.scales, whole.scales)
    assert parts.error == pytest.approx(whole.error, rel=1e-12)


@ALL
def test_the_result_does_not_depend_on_the_piece_size(form: WeightFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _store(form)
    monkeypatch.setattr("axzoo.weights.stored.PIECE", 300)
    parts = _store(form)
    assert_array_equal(parts.values.view(np.uint8), whole.values.view(np.uint8))
    assert_array_equal(parts.scales, whole.scales)


@pytest.mark.parametrize("stored_as", [np.float16, ml_dtypes.bfloat16])
@ALL
def test_the_checkpoints_dtype_does_not_matter(stored_as: Any, form: WeightFormat) -> None:
    short = WEIGHT.astype(stored_as)
    found, expected = _store(form, short), _store(form, short.astype(np.float32))
    assert_array_equal(found.values.view(np.uint8), expected.values.view(np.uint8))


@ALL
def test_zeros_have_no_error(form: WeightFormat) -> None:
    stored = _store(form, np.zeros((3, 128), np.float32))
    assert stored.error == 0
    assert not stored.dequantized().any()


@pytest.mark.parametrize("name", ["s8", "s4", "s4 mse", "s8 g64 mse"])
def test_huge_weights_have_a_finite_error(name: str) -> None:
    """Their squares overflow fp32."""
    huge = _store(FORMATS[name], WEIGHT * np.float32(1e30))
    assert huge.error == pytest.approx(_store(FORMATS[name]).error, rel=1e-3)


def test_a_weight_beyond_the_type_is_refused() -> None:
    weight = WEIGHT.copy()
    weight[3, 5] = 7e4
    _store(FORMATS["bf16"], weight)
    with pytest.raises(AxzooError, match=r"^q_proj.weight: a weight of magnitude 70000 is beyond fp16: use fp32$"):
        _store(FORMATS["fp16"], weight)


@pytest.mark.parametrize("columns", [31, 33, 48])
def test_groups_that_do_not_divide_a_row_are_refused(columns: int) -> None:
    message = (
        f"^q_proj.weight: weight_group_size 32 does not divide its {columns} input features: choose another size, or 0"
    )
    with pytest.raises(AxzooError, match=message):
        _store(FORMATS["s4 g32"], np.ones((4, columns), np.float32))


def _relative_error(restored: NDArray[np.float32]) -> float:
    original = WEIGHT.astype(np.float64)
    return float(np.linalg.norm(restored - original) / np.linalg.norm(original))
