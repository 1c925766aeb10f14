"""The 16-bit kernel against products in float64."""

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
from axzoo.runtime.fast.kernels import EIGHT_BIT, SIXTEEN_BIT, Kernel, MatMul, has_exact_int8_matmul
from axzoo.runtime.fast.rewriting import FusedGraphBuilder

pytestmark = pytest.mark.skipif(not has_exact_int8_matmul(shared_options()), reason="no exact int8 products")


def _multiply(kernel: Kernel, rows: NDArray[np.float32], matmul: MatMul) -> NDArray[np.float32]:
    builder = FusedGraphBuilder()
    builder.graph.input.append(helper.make_tensor_value_info(matmul.input, TensorProto.FLOAT, (1, *rows.shape)))
    builder.graph.output.append(helper.make_tensor_value_info(matmul.output, TensorProto.FLOAT, None))
    kernel.add(builder, matmul)
    (found,) = builder.load(shared_options()).run(None, {matmul.input: rows[None]})
    return np.asarray(found[0])


def _relative_error(rows: NDArray[np.float32], matmul: MatMul, max_abs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the error as a fraction of its bound: half a step of the low byte for every weight."""
    weights = matmul.codes.astype(np.float64) * matmul.scales
    wanted = rows.astype(np.float64) @ weights
    half_steps = max_abs * np.abs(weights).sum(axis=0) * 0.5 / 127 / 254
    rounding = 1e-5 * max_abs * np.abs(weights).max(axis=0) * len(weights)
    return np.abs(_multiply(SIXTEEN_BIT, rows, matmul) - wanted) / (half_steps + rounding)


def _case(seed: int, tokens: int, blocks: int, columns: int, kind: str) -> tuple[NDArray[np.float32], MatMul]:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((tokens, 32 * blocks)) * 10.0 ** rng.integers(-20, 20, (tokens, 1))
    bits = 8 if kind == "int8" else 4
    codes = rng.integers(-(1 << bits - 1) + 1, 1 << bits - 1, (32 * blocks, columns)).astype(np.int8)
    scales = rng.uniform(1e-4, 1e-2, (1, columns)).astype(np.float32)
    return rows.astype(np.float32), MatMul("x", "y", codes if bits == 8 else codes.astype(ml_dtypes.int4), scales)


CASES = given(
    st.integers(0, 999), st.integers(1, 40), st.integers(1, 20), st.integers(1, 40), st.sampled_from(["int8", "int4"])
)


@CASES
def test_the_error_per_row_is_at_most_half_a_step_of_the_low_byte(
    seed: int, tokens: int, blocks: int, columns: int, kind: str
) -> None:
    rows, matmul = _case(seed, tokens, blocks, columns, kind)
    rows[:, 1] *= 1000  # an outlier, which determines the scale of its row
    assert (_relative_error(rows, matmul, np.abs(rows).max(axis=1, keepdims=True).astype(np.float64)) <= 1).all()


@CASES
def test_the_error_after_a_norm_is_relative_to_the_largest_activation(
    seed: int, tokens: int, blocks: int, columns: int, kind: str
) -> None:
    rows, matmul = _case(seed, tokens, blocks, columns, kind)
    sizes = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    rows = (rows / sizes * np.sqrt(rows.shape[1]) + 0.3).astype(np.float32)
    error = _relative_error(
        rows, replace(matmul, follows_norm=True), np.abs(rows).max(keepdims=True).astype(np.float64)
    )
    assert (error <= 1).all()


def test_rows_of_zeros_stay_zeros() -> None:
    rows, matmul = _case(0, 9, 2, 5, "int8")
    for follows_norm in (False, True):
        assert (_multiply(SIXTEEN_BIT, np.zeros_like(rows), replace(matmul, follows_norm=follows_norm)) == 0).all()
    rows[3] = 0
    found = _multiply(SIXTEEN_BIT, rows, matmul)
    assert (found[3] == 0).all() and np.isfinite(found).all() and (found[4] != 0).any()


def test_outliers_do_not_hide_small_activations() -> None:
    """One activation per block is 1000 times larger than the others: 8 bits lose the others, 16 bits keep them."""
    rows, matmul = _case(1, 16, 18, 64, "int8")
    rows[:, ::32] *= 1000
    wanted = rows.astype(np.float64) @ (matmul.codes.astype(np.float64) * matmul.scales)
    errors = [float(np.linalg.norm(_multiply(one, rows, matmul) - wanted)) for one in (SIXTEEN_BIT, EIGHT_BIT)]
    assert errors[0] < errors[1] / 20


@pytest.mark.parametrize(("groups", "supported"), [(1, True), (2, False), (18, False)])
def test_only_one_scale_per_column_is_supported(groups: int, supported: bool) -> None:
    assert SIXTEEN_BIT.supports(576, groups) is supported


def test_a_processor_with_vnni_is_exact() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    if not {"avx512_vnni", "avx_vnni"} & set(flags):
        pytest.skip("this processor has no VNNI")
    assert has_exact_int8_matmul(shared_options())
