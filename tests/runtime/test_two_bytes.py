"""Activations in two bytes against products in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from axzoo.runtime.engine import shared_options
from axzoo.runtime.fast.kernels import BLOCKS, TWO_BYTES, Kernel, Product, is_exact
from axzoo.runtime.fast.rewriting import Parts

pytestmark = pytest.mark.skipif(not is_exact(shared_options()), reason="this processor adds bytes up inexactly")


def _multiply(kernel: Kernel, rows: NDArray[np.float32], product: Product) -> NDArray[np.float32]:
    parts = Parts()
    parts.graph.input.append(helper.make_tensor_value_info(product.input, TensorProto.FLOAT, (1, *rows.shape)))
    parts.graph.output.append(helper.make_tensor_value_info(product.output, TensorProto.FLOAT, None))
    kernel.multiply(parts, product)
    (found,) = parts.load(shared_options()).run(None, {product.input: rows[None]})
    return np.asarray(found[0])


def _lost(rows: NDArray[np.float32], product: Product, largest: NDArray[np.float64]) -> NDArray[np.float64]:
    """The error beside its bound, half a step of the second byte for every weight; 1 is all that is allowed."""
    weights = product.codes.astype(np.float64) * product.scales
    wanted = rows.astype(np.float64) @ weights
    half_steps = largest * np.abs(weights).sum(axis=0) * 0.5 / 127 / 254
    rounding = 1e-5 * largest * np.abs(weights).max(axis=0) * len(weights)
    return np.abs(_multiply(TWO_BYTES, rows, product) - wanted) / (half_steps + rounding)


def _case(seed: int, tokens: int, blocks: int, columns: int, kind: str) -> tuple[NDArray[np.float32], Product]:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((tokens, 32 * blocks)) * 10.0 ** rng.integers(-20, 20, (tokens, 1))
    bits = 8 if kind == "int8" else 4
    codes = rng.integers(-(1 << bits - 1) + 1, 1 << bits - 1, (32 * blocks, columns)).astype(np.int8)
    scales = rng.uniform(1e-4, 1e-2, (1, columns)).astype(np.float32)
    return rows.astype(np.float32), Product("x", "y", codes if bits == 8 else codes.astype(ml_dtypes.int4), scales)


CASES = given(
    st.integers(0, 999), st.integers(1, 40), st.integers(1, 20), st.integers(1, 40), st.sampled_from(["int8", "int4"])
)


@CASES
def test_rows_of_any_size_lose_half_a_step_of_the_second_byte(
    seed: int, tokens: int, blocks: int, columns: int, kind: str
) -> None:
    rows, product = _case(seed, tokens, blocks, columns, kind)
    rows[:, 1] *= 1000  # an outlier, which the rest is measured by
    assert (_lost(rows, product, np.abs(rows).max(axis=1, keepdims=True).astype(np.float64)) <= 1).all()


@CASES
def test_what_a_norm_made_is_measured_by_its_largest(
    seed: int, tokens: int, blocks: int, columns: int, kind: str
) -> None:
    rows, product = _case(seed, tokens, blocks, columns, kind)
    sizes = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    rows = (rows / sizes * np.sqrt(rows.shape[1]) + 0.3).astype(np.float32)
    lost = _lost(rows, replace(product, is_normed=True), np.abs(rows).max(keepdims=True).astype(np.float64))
    assert (lost <= 1).all()


def test_rows_of_zeros_stay_zeros() -> None:
    rows, product = _case(0, 9, 2, 5, "int8")
    for is_normed in (False, True):
        assert (_multiply(TWO_BYTES, np.zeros_like(rows), replace(product, is_normed=is_normed)) == 0).all()
    rows[3] = 0
    found = _multiply(TWO_BYTES, rows, product)
    assert (found[3] == 0).all() and np.isfinite(found).all() and (found[4] != 0).any()


def test_outliers_that_blocks_round_away() -> None:
    """Each block has an entry a thousand times the others: one byte loses the others, two keep them."""
    rows, product = _case(1, 16, 18, 64, "int8")
    rows[:, ::32] *= 1000
    wanted = rows.astype(np.float64) @ (product.codes.astype(np.float64) * product.scales)
    errors = [float(np.linalg.norm(_multiply(one, rows, product) - wanted)) for one in (TWO_BYTES, BLOCKS)]
    assert errors[0] < errors[1] / 20


@pytest.mark.parametrize(("groups", "fits"), [(1, True), (2, False), (18, False)])
def test_only_one_scale_a_column_fits(groups: int, fits: bool) -> None:
    assert TWO_BYTES.fits(576, groups) is fits


def test_a_processor_with_vnni_is_exact() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    if not {"avx512_vnni", "avx_vnni"} & set(flags):
        pytest.skip("this processor has no VNNI")
    assert is_exact(shared_options())
