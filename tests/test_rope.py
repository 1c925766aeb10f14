"""Rotary frequencies against transformers' own, and scalings that make no sense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_max_ulp
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from axzoo.errors import AxzooError
from axzoo.rope import is_positive_number, make_rope, rope_tables
from axzoo.spec import RopeSpec

LLAMA_3_1 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
DEFAULT = {"rope_type": "default"}


@pytest.mark.parametrize("scaling", [DEFAULT, LINEAR, LLAMA_3_1, LLAMA_3_1 | {"factor": 32.0}])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_as_transformers_has_them(scaling: dict[str, Any], theta: float, head_dim: int) -> None:
    config = LlamaConfig(
        hidden_size=head_dim * 2,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=131072,
        rope_parameters={**scaling, "rope_theta": theta},
    )
    theirs = LlamaRotaryEmbedding(config)
    ours = make_rope(head_dim, theta, scaling)
    assert ours.theta == theta
    inv_freq = np.array(ours.inv_freq, np.float32)
    # transformers takes the power in fp32, we in fp64: a few units in the last place
    assert_array_max_ulp(inv_freq, theirs.inv_freq.numpy(), maxulp=8)
    cos, sin = rope_tables(RopeSpec(theta, tuple(theirs.inv_freq.tolist())), 2048)
    their_cos, their_sin = theirs(torch.zeros(1), torch.arange(2048)[None])
    assert (cos.shape, cos.dtype.type, sin.dtype.type) == ((2048, head_dim // 2), np.float32, np.float32)
    assert_allclose(cos, their_cos[0, :, : head_dim // 2].numpy(), atol=2e-7)
    assert_allclose(sin, their_sin[0, :, : head_dim // 2].numpy(), atol=2e-7)


def test_frequencies_are_fp32_numbers() -> None:
    frequencies = make_rope(64, 10000.0, DEFAULT).inv_freq
    assert frequencies[0] == 1.0
    assert all(float(np.float32(value)) == value for value in frequencies)
    assert list(frequencies) == sorted(frequencies, reverse=True)


def test_the_attention_factor_scales_both_tables() -> None:
    rope = make_rope(8, 100.0, DEFAULT)
    plain, scaled = rope_tables(rope, 9), rope_tables(RopeSpec(rope.theta, rope.inv_freq, 1.5), 9)
    for ours, wanted in zip(scaled, plain, strict=True):
        assert_allclose(ours, wanted * 1.5, rtol=1e-6)


@pytest.mark.parametrize(
    "scaling, message",
    [
        ({"rope_type": "yarn"}, "rope_type 'yarn' is not supported; supported are: default, linear, llama3"),
        ({"rope_type": None}, "rope_type None is not supported"),
        ({"rope_type": []}, r"rope_type \[\] is not supported"),
        ({"rope_type": {}}, "is not supported"),
        (DEFAULT | {"factor": 2.0}, r"takes the parameters \[\], but the config has \['factor'\]"),
        ({"rope_type": "linear"}, r"takes the parameters \['factor'\], but the config has \[\]"),
        (LINEAR | {"beta": 1}, r"but the config has \['beta', 'factor'\]"),
        (LINEAR | {"factor": 0}, "factor is 0, but must be a positive number"),
        (LINEAR | {"factor": -2.0}, "must be a positive number"),
        (LINEAR | {"factor": True}, "must be a positive number"),
        (LINEAR | {"factor": "2"}, "must be a positive number"),
        (LINEAR | {"factor": float("nan")}, "must be a positive number"),
        (LINEAR | {"factor": 10**400}, "must be a positive number"),
        (LINEAR | {"factor": 1e-300}, "gives no finite frequencies"),
        (LLAMA_3_1 | {"high_freq_factor": 1.0}, "high_freq_factor 1.0 must be above low_freq_factor 1.0"),
    ],
)
def test_scalings_that_make_no_sense(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(AxzooError, match=message):
        make_rope(16, 1000.0, scaling)


@pytest.mark.parametrize("dim", [3, 7, 1 << 17, 2**31 - 2])
def test_dimensions_that_make_no_sense(dim: int) -> None:
    with pytest.raises(AxzooError, match=f"takes an even number of at most 65536 dimensions, not {dim}"):
        make_rope(dim, 1000.0, DEFAULT)


def test_positive_numbers() -> None:
    assert all(map(is_positive_number, [1, 0.5, 10**308, 5e-324]))
    unfit = [0, -1, True, False, "1", None, [], float("nan"), float("inf"), 10**309, -0.0]
    assert not any(map(is_positive_number, unfit))
