"""The metrics, on cases with known results."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from axzoo.check.closeness import FP32_NOISE, context_noise
from axzoo.check.metrics import cosine, kl_divergence, log_softmax, max_abs, relative_l2
from axzoo.model.oracle import attend
from axzoo.model.spec import LayerSpec, NormSpec, RopeSpec

ROWS = hnp.arrays(np.float32, (3, 5), elements=st.floats(-50, 50, width=32))


@pytest.mark.parametrize(
    "got, want, angle, distance",
    [
        ([1, 0], [1, 0], 1, 0),
        ([2, 0], [1, 0], 1, 1),
        ([0, 1], [1, 0], 0, math.sqrt(2)),
        ([-3, 0], [1, 0], -1, 4),
        ([1, 1], [1, 0], math.sqrt(0.5), 1),
        ([0, 0], [0, 0], 1, 0),
        ([0, 0], [3, 4], 0, 1),
        ([3, 4], [0, 0], 0, math.inf),
    ],
)
def test_angle_and_distance(got: list[float], want: list[float], angle: float, distance: float) -> None:
    a, b = np.array(got, np.float32), np.array(want, np.float32)
    assert cosine(a, b) == pytest.approx(angle)
    assert relative_l2(a, b) == pytest.approx(distance)


def test_sums_are_computed_in_double_precision() -> None:
    big = np.full(1 << 16, 255, ml_dtypes.bfloat16)
    assert cosine(big, big) == pytest.approx(1, abs=1e-12)
    assert relative_l2(big, big) == 0
    assert max_abs(np.array([60000], np.float16), np.array([-60000], np.float16)) == 120000


def test_nan_is_never_close() -> None:
    nan, one = np.array([np.nan, 1], np.float32), np.ones(2, np.float32)
    assert not cosine(nan, one) >= 0.9
    assert not relative_l2(nan, one) <= 0.1


@given(x=ROWS, shift=st.floats(-1e4, 1e4))
def test_log_softmax_is_a_distribution_and_ignores_a_shift(x: NDArray[np.float32], shift: float) -> None:
    assert_allclose(np.exp(log_softmax(x)).sum(-1), 1)
    assert_allclose(log_softmax(x.astype(np.float64) + shift), log_softmax(x), atol=1e-9)


def test_log_softmax_of_extremes() -> None:
    assert_allclose(log_softmax(np.array([1e30, 0, -1e30], np.float32)), [0, -1e30, -2e30], rtol=1e-6)


@given(want=ROWS, got=ROWS)
def test_kl_agrees_with_its_formula(want: NDArray[np.float32], got: NDArray[np.float32]) -> None:
    found = kl_divergence(want, got)
    assert found.shape == (3,)
    assert (found >= -1e-12).all()
    for row in range(3):
        p, q = ([math.exp(float(v)) for v in x[row]] for x in (want, got))
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        assert found[row] == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), abs=1e-9)
    assert_allclose(kl_divergence(want, want), 0, atol=1e-12)


def test_kl_is_not_symmetric() -> None:
    a, b = np.log(np.array([0.5, 0.5])), np.log(np.array([0.25, 0.75]))
    assert kl_divergence(a, b) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl_divergence(b, a) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_kl_over_the_returned_tokens() -> None:
    """Three of four tokens, renormalized to 2/7, 2/7, 3/7 in `want` and 1/4, 1/4, 2/4 in `got`."""
    want = np.log(np.array([0.2, 0.3, 0.2, 0.3]))
    got = np.log(np.array([0.1, 0.0, 0.1, 0.2]), out=np.full(4, -np.inf), where=np.array([True, False, True, True]))
    expected = 2 * (2 / 7) * math.log((2 / 7) / (1 / 4)) + (3 / 7) * math.log((3 / 7) / (2 / 4))
    assert kl_divergence(want, got) == pytest.approx(expected)


@pytest.mark.parametrize("bias, most", [(0.0, FP32_NOISE), (50.0, 1e-3)])
def test_noise_of_attention_scores_covers_fp32_and_follows_their_size(bias: float, most: float) -> None:
    """A `bias` of queries and keys makes scores of hundreds, which cancel in the softmax."""
    norm, rope = NormSpec("rms_norm", 1e-6), RopeSpec(theta=1e4, rotary_dim=32)
    spec = LayerSpec(64, 64, 4, 2, 32, norm, rope, 128)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(40, heads, 32, generator=generator, dtype=torch.float64) for heads in (4, 2, 2))
    q[..., :4] += bias / 10
    k[..., :4] += bias
    q, k, v = (x.float().double() for x in (q, k, v))
    masked = torch.ones(40, 40, dtype=torch.bool).triu(1)
    exact = attend(spec, q, k, v, masked)
    in_fp32 = attend(spec, q.float(), k.float(), v.float(), masked)
    noise = context_noise(spec, q.float(), k.float(), v.float(), masked, in_fp32)
    error = (in_fp32.double() - exact).abs()
    assert (error <= noise + 1e-6).all()
    assert noise.max() < most
    assert noise[0].max() < 1e-6  # the first token sees only itself
