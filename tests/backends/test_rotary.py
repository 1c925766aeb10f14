"""Rotary embedding, full and partial, half-split and interleaved, compared with complex arithmetic in fp64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from run_block import run_block

from axzoo.backends.host.attention import rotary_inputs, rotate
from axzoo.model.spec import LayerSpec, NormSpec, RopeSpec

HEADS, HEAD_DIM, THETA = 3, 12, 50.0
SPEC = LayerSpec(36, 8, HEADS, HEADS, HEAD_DIM, NormSpec("rms_norm", 1e-5), RopeSpec(THETA, HEAD_DIM), 32)
X = np.random.default_rng(0).standard_normal((1, 4, HEADS * HEAD_DIM)).astype(np.float32)
POSITIONS = np.array([[0, 1, 7, 30]], np.uint32)


def _rotated(rope: RopeSpec) -> NDArray[Any]:
    spec = replace(SPEC, rope=rope)
    (found,) = run_block(
        lambda g: [rotate(g, spec, "x", rotary_inputs(g, spec, 32, "indices"), "q", HEADS)], x=X, indices=POSITIONS
    ).values()
    return found


def _turned(rotary_dim: int, interleaved: bool) -> NDArray[Any]:
    """Each pair as a complex number, times e^(i position theta^(-2 pair / rotary_dim))."""
    expected = X.reshape(4, HEADS, HEAD_DIM).astype(np.float64)
    for pair in range(rotary_dim // 2):
        first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + rotary_dim // 2)
        turn = np.exp(1j * POSITIONS[0].astype(np.float64) * THETA ** (-2 * pair / rotary_dim))[:, None]
        product = (expected[..., first] + 1j * expected[..., second]) * turn
        expected[..., first], expected[..., second] = product.real, product.imag
    return expected.reshape(X.shape)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [2, 4, 6, 10, 12])
def test_rotates_pairs_and_keeps_the_rest(rotary_dim: int, interleaved: bool) -> None:
    found = _rotated(RopeSpec(THETA, rotary_dim, interleaved))
    assert_allclose(found, _turned(rotary_dim, interleaved), atol=2e-6)
    kept = np.arange(HEAD_DIM) >= rotary_dim
    assert_array_equal(found.reshape(4, HEADS, HEAD_DIM)[..., kept], X.reshape(4, HEADS, HEAD_DIM)[..., kept])


def test_nothing_is_rotated_without_dimensions() -> None:
    assert_array_equal(_rotated(RopeSpec(THETA, 0)), X)


def test_interleaved_and_half_rotation_differ() -> None:
    assert np.abs(_turned(HEAD_DIM, True) - _turned(HEAD_DIM, False)).max() > 0.1


def test_attention_factor_scales_the_rotated_values() -> None:
    scaling = {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 32}
    plain, longer = (_rotated(RopeSpec(THETA, 8, False, scaling | {"attention_factor": f})) for f in (1.0, 1.5))
    heads = plain.reshape(4, HEADS, HEAD_DIM).astype(np.float64)
    heads[..., :8] *= 1.5
    assert_allclose(longer, heads.reshape(X.shape), rtol=1e-5, atol=1e-6)
