"""Rotary frequencies of every rope type against those of transformers, and invalid parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from axzoo.core.errors import AxzooError
from axzoo.model.rope import frequencies, is_positive_number, make_rope, rope_tables
from axzoo.model.spec import RopeSpec, supported_length

LENGTH = 4096
"""max_position_embeddings."""

DEFAULT = {"rope_type": "default"}
LINEAR = {"rope_type": "linear", "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 3.0}
LLAMA_3_1 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
MSCALES = {"mscale": 0.707, "mscale_all_dim": 1.2}
LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 1024}


def _longrope(rotary_dim: int, **more: Any) -> dict[str, Any]:
    pairs = rotary_dim // 2
    return LONGROPE | {
        "short_factor": [1 + pair / pairs for pair in range(pairs)],
        "long_factor": [2 + pair for pair in range(pairs)],
        **more,
    }


def _config(head_dim: int, theta: float, scaling: dict[str, Any], length: int = LENGTH) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=head_dim * 2,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=length,
        rope_parameters={**scaling, "rope_theta": theta},
    )


SCALINGS: dict[str, Any] = {
    "linear": LINEAR,
    "dynamic": DYNAMIC,
    "llama3": LLAMA_3_1,
    "llama3, 32 times": LLAMA_3_1 | {"factor": 32.0},
    "yarn": YARN,
    "yarn, attention factor": YARN | {"attention_factor": 1.3},
    "yarn, betas": YARN | {"beta_fast": 16, "beta_slow": 2.5},
    "yarn, not truncated": YARN | {"truncate": False},
    "yarn, one mscale": YARN | {"mscale": 0.707},
    "yarn, mscales": YARN | MSCALES,
    "yarn, attention factor before mscales": YARN | MSCALES | {"attention_factor": 0.9},
    "yarn, no longer": YARN | {"factor": 1.0},
    "longrope": _longrope,
    "longrope, factor": lambda dim: _longrope(dim, factor=32.0),
    "longrope, attention factor": lambda dim: _longrope(dim, attention_factor=1.19),
    "longrope, shorter than trained": lambda dim: _longrope(dim, original_max_position_embeddings=2 * LENGTH),
}


@pytest.mark.parametrize("positions", [16, 1024, 1025, LENGTH, LENGTH + 1, 5 * LENGTH])
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("dim", [16, 96, 128])
def test_every_rope_type_agrees_with_transformers(scaling: Any, theta: float, dim: int, positions: int) -> None:
    """Types that depend on the sequence length are compared at the longest sequence."""
    scaling = scaling(dim) if callable(scaling) else scaling
    theirs, their_factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](
        _config(dim, theta, scaling), torch.device("cpu"), seq_len=positions
    )
    ours = make_rope(dim, theta, scaling, LENGTH)
    assert (ours.theta, ours.rotary_dim, ours.interleaved) == (theta, dim, False)
    inv_freq, factor = frequencies(ours, positions)
    assert (inv_freq.shape, inv_freq.dtype) == ((dim // 2,), np.float32)
    # transformers computes in fp32, we in fp64: a few units in the last place
    assert_allclose(inv_freq, theirs.numpy(), rtol=2e-6)
    assert factor == pytest.approx(their_factor, rel=1e-12)


def test_the_rope_types_of_transformers() -> None:
    """proportional is used by Gemma only; a new name here needs a decision."""
    assert set(ROPE_INIT_FUNCTIONS) == {"linear", "dynamic", "llama3", "yarn", "longrope", "proportional"}
    assert {s["rope_type"] for s in SCALINGS.values() if isinstance(s, dict)} | {"longrope", "proportional"} == set(
        ROPE_INIT_FUNCTIONS
    )


@pytest.mark.parametrize("scaling", [DEFAULT, LINEAR, LLAMA_3_1, YARN])
@pytest.mark.parametrize("dim", [16, 64, 128])
def test_tables_agree_with_transformers(scaling: dict[str, Any], dim: int) -> None:
    theirs = LlamaRotaryEmbedding(_config(dim, 10000.0, scaling))
    ours = make_rope(dim, 10000.0, scaling, LENGTH)
    cos, sin = rope_tables(ours, 2048)
    their_cos, their_sin = theirs(torch.zeros(1), torch.arange(2048)[None])
    assert (cos.shape, cos.dtype.type, sin.dtype.type) == ((2048, dim // 2), np.float32, np.float32)
    inv_freq, _ = frequencies(ours, 2048)
    apart = np.abs(inv_freq - theirs.inv_freq.numpy())  # an error in the last place, which grows 2048-fold
    apart = 3e-7 + 1.2 * np.where(apart > 0, 2048 * apart + np.spacing(2048 * inv_freq), 0)
    assert (np.abs(cos - their_cos[0, :, : dim // 2].numpy()) <= apart).all()
    assert (np.abs(sin - their_sin[0, :, : dim // 2].numpy()) <= apart).all()


def test_tables_are_made_for_the_longest_sequence() -> None:
    rope = make_rope(8, 100.0, _longrope(8), LENGTH)
    short, long = rope_tables(rope, 1024)[0], rope_tables(rope, 1025)[0]
    factor = math.sqrt(1 + math.log(4) / math.log(1024))
    assert_allclose(short[1], factor * np.cos(100.0 ** -np.arange(0, 1, 0.25) / [1, 1.25, 1.5, 1.75]), rtol=1e-6)
    assert_allclose(long[1], factor * np.cos(100.0 ** -np.arange(0, 1, 0.25) / [2, 3, 4, 5]), rtol=1e-6)


def test_frequencies_are_fp32_numbers() -> None:
    inv_freq, factor = frequencies(make_rope(64, 10000.0, DEFAULT, LENGTH), 8)
    assert (inv_freq.dtype, inv_freq[0], factor) == (np.float32, 1.0, 1.0)
    assert_array_equal(inv_freq, np.sort(inv_freq)[::-1])
    assert_allclose(inv_freq[1], 10000 ** (-1 / 32), rtol=1e-7)


def test_the_attention_factor_scales_both_tables() -> None:
    plain, scaled = (
        rope_tables(make_rope(8, 100.0, YARN | {"attention_factor": factor}, LENGTH), 9) for factor in (1.0, 1.5)
    )
    for ours, wanted in zip(scaled, plain, strict=True):
        assert_allclose(ours, wanted * 1.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("scaling", "positions"),
    [
        ({"rope_type": "default"}, 64),
        ({"rope_type": "linear", "factor": 4.0}, 64),
        ({"rope_type": "dynamic", "factor": 1.5}, 96),
        ({"rope_type": "dynamic", "factor": 4.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 64),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}, 64),
    ],
)
def test_the_length_a_rope_supports(scaling: dict[str, Any], positions: int) -> None:
    assert supported_length(make_rope(8, 1e4, scaling, 64), 64) == positions


def test_a_spec_is_complete() -> None:
    """make_rope fills in the training length and the factor of longrope, and drops parameters that are null."""
    trained = {"original_max_position_embeddings": LENGTH}
    assert make_rope(8, 1.0, {"rope_type": "dynamic", "factor": 2}, LENGTH).scaling == DYNAMIC | trained | {"factor": 2}
    # as in transformers, dynamic always uses max_position_embeddings
    assert make_rope(8, 1.0, DYNAMIC | {"original_max_position_embeddings": 7}, LENGTH).scaling == DYNAMIC | trained
    assert make_rope(8, 2.0, YARN | {"mscale": None}, LENGTH).scaling == YARN
    assert make_rope(8, 2.0, {"rope_type": "yarn", "factor": 4.0}, LENGTH).scaling == YARN | trained
    found = make_rope(8, 2.0, _longrope(8) | {"rope_type": "su"}, LENGTH, interleaved=True)
    assert found == RopeSpec(2.0, 8, True, _longrope(8) | {"factor": 4.0})


HOSTILE: list[Any] = [0, -2.0, True, "2", [2.0], {}, float("nan"), float("inf"), 10**400]
NUMBERS = [
    *((LINEAR, key) for key in ("factor",)),
    *((DYNAMIC, key) for key in ("factor",)),
    *((LLAMA_3_1, key) for key in LLAMA_3_1 if key != "rope_type"),
    *((YARN | MSCALES | {"beta_fast": 32, "beta_slow": 1, "attention_factor": 1}, key)
      for key in [*YARN, *MSCALES, "beta_fast", "beta_slow", "attention_factor"] if key != "rope_type"),
    *((_longrope(16), key) for key in ("original_max_position_embeddings", "attention_factor", "factor")),
]  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("scaling, key", NUMBERS)
def test_parameters_must_be_positive_numbers(scaling: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(AxzooError, match=f"rope parameter {key} is .*, but must be a positive number") as error:
        make_rope(16, 1000.0, scaling | {key: value}, LENGTH)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "value", [*HOSTILE, [1.0] * 7, [1.0] * 9, [], [1.0] * 7 + [0], [1.0] * 7 + [float("nan")], [1.0] * 7 + ["1"],
              [[1.0]] * 8, (1.0,) * 8]
)  # fmt: skip
@pytest.mark.parametrize("key", ["short_factor", "long_factor"])
def test_longrope_factors_must_be_a_list_of_positive_numbers(key: str, value: Any) -> None:
    with pytest.raises(AxzooError, match=f"rope parameter {key} must be a list of 8 positive numbers"):
        make_rope(16, 1000.0, _longrope(16) | {key: value}, LENGTH)


@pytest.mark.parametrize("value", [0, 1, "no", [], {}])
def test_truncate_must_be_a_boolean(value: Any) -> None:
    with pytest.raises(AxzooError, match=r"rope parameter truncate is .*, but must be true or false"):
        make_rope(16, 1000.0, YARN | {"truncate": value}, LENGTH)


KINDS = "default, linear, dynamic, llama3, yarn, longrope"


@pytest.mark.parametrize(
    "scaling, message",
    [
        ({"rope_type": "mrope"}, f"rope_type 'mrope' is not supported; supported are: {KINDS}"),
        ({"rope_type": "proportional"}, "rope_type 'proportional' is not supported"),
        ({"rope_type": None}, "rope_type None is not supported"),
        ({"rope_type": []}, r"rope_type \[\] is not supported"),
        ({"rope_type": {}}, "is not supported"),
        (DEFAULT | {"factor": 2.0}, r"takes the parameters \[\], but the config has \['factor'\]"),
        ({"rope_type": "linear"}, r"takes the parameters \['factor'\], but the config has \[\]"),
        (LINEAR | {"factor": None}, r"takes the parameters \['factor'\], but the config has \[\]"),
        (LINEAR | {"beta": 1}, r"but the config has \['beta', 'factor'\]"),
        ({"rope_type": "dynamic"}, r"rope_type 'dynamic' takes the parameters \['factor', 'original_max_pos"),
        (DYNAMIC | {"alpha": 1000.0}, r"but the config has \['alpha', 'factor', 'original_max_pos"),
        (LLAMA_3_1 | {"low_freq_factor": None}, "rope_type 'llama3' takes the parameters .*'low_freq_factor'"),
        (LLAMA_3_1 | {"beta_fast": 32}, "but the config has .*'beta_fast'"),
        ({"rope_type": "yarn"}, "rope_type 'yarn' takes the parameters"),
        (YARN | {"finetuned": True}, "but the config has .*'finetuned'"),
        (LONGROPE, "rope_type 'longrope' takes the parameters .*'long_factor'"),
        (_longrope(16, short_mscale=1.2), "but the config has .*'short_mscale'"),
        (LLAMA_3_1 | {"high_freq_factor": 1.0}, "high_freq_factor 1.0 must be above low_freq_factor 1.0"),
    ],
)
def test_invalid_scalings(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(AxzooError, match=message):
        make_rope(16, 1000.0, scaling, LENGTH)


TOGETHER: dict[str, tuple[float, dict[str, Any]]] = {
    "frequencies overflow": (1000.0, LINEAR | {"factor": 1e-300}),
    "angles overflow": (1000.0, LINEAR | {"factor": 1e-37}),
    "frequencies vanish": (1000.0, LINEAR | {"factor": 1e300}),
    "theta vanishes": (1e-300, DEFAULT),
    "theta overflows": (1e308, DEFAULT),
    "dynamic's base overflows": (1000.0, DYNAMIC | {"factor": 1e308}),
    "llama3 overflows": (1000.0, LLAMA_3_1 | {"factor": 1e-300}),
    "yarn divides by the logarithm of one": (1.0, YARN),
    "yarn's turns overflow": (1000.0, YARN | {"beta_fast": 1e308}),
    "yarn's turns vanish": (1000.0, YARN | {"beta_slow": 5e-324}),
    "yarn's attention factor overflows fp32": (1000.0, YARN | {"attention_factor": 1e39}),
    "yarn's attention factor vanishes in fp32": (1000.0, YARN | {"attention_factor": 1e-46}),
    "yarn's mscales vanish": (1000.0, YARN | {"mscale": 1e308, "mscale_all_dim": 1e-308, "factor": 1e300}),
    "longrope's logarithm of one": (1000.0, _longrope(16, original_max_position_embeddings=1)),
    "longrope's factor overflows": (1000.0, _longrope(16, short_factor=[1e-300] * 8, long_factor=[1e-300] * 8)),
}


@pytest.mark.parametrize("theta, scaling", TOGETHER.values(), ids=TOGETHER)
def test_invalid_combinations_of_parameters(theta: float, scaling: dict[str, Any]) -> None:
    with pytest.raises(
        AxzooError, match="gives frequencies that are not positive and finite: the config is wrong"
    ) as error:
        make_rope(16, theta, scaling, LENGTH)
    assert "\n" not in str(error.value)


def test_dynamic_needs_more_than_one_pair() -> None:
    with pytest.raises(AxzooError, match="gives frequencies that are not positive and finite"):
        make_rope(2, 1000.0, DYNAMIC, LENGTH)


POSITIVE = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False) | st.integers(1, 10**30)
ANY = st.one_of(
    st.just(DEFAULT),
    st.fixed_dictionaries({"rope_type": st.sampled_from(["linear", "dynamic"]), "factor": POSITIVE}),
    st.fixed_dictionaries(dict.fromkeys(LLAMA_3_1, POSITIVE) | {"rope_type": st.just("llama3")}),
    st.fixed_dictionaries(
        {"rope_type": st.just("yarn"), "factor": POSITIVE},
        optional=dict.fromkeys([*MSCALES, "beta_fast", "beta_slow", "attention_factor"], POSITIVE)
        | {"original_max_position_embeddings": POSITIVE, "truncate": st.booleans()},
    ),
    st.fixed_dictionaries(
        {"rope_type": st.just("longrope")}
        | {key: st.lists(POSITIVE, min_size=2, max_size=2) for key in ("short_factor", "long_factor")},
        optional=dict.fromkeys(("original_max_position_embeddings", "attention_factor", "factor"), POSITIVE),
    ),
)


@given(theta=POSITIVE, scaling=ANY, length=st.integers(1, 2**31 - 1), positions=st.integers(1, 64))
def test_any_parameters_give_finite_tables_or_are_refused(
    theta: float, scaling: dict[str, Any], length: int, positions: int
) -> None:
    try:
        rope = make_rope(4, float(theta), scaling, length)
        cos, sin = rope_tables(rope, positions)
    except AxzooError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(cos).all()
        assert np.isfinite(sin).all()


@pytest.mark.parametrize("dim", [-2, 0, 1, 3, 7, 1 << 17, 2**31 - 2])
def test_invalid_dimensions(dim: int) -> None:
    with pytest.raises(AxzooError, match=f"needs an even number of dimensions from 2 to 65536, not {dim}"):
        make_rope(dim, 1000.0, DEFAULT, LENGTH)


def test_positive_numbers() -> None:
    assert all(map(is_positive_number, [1, 0.5, 10**308, 5e-324]))
    unfit = [0, -1, True, False, "1", None, [], float("nan"), float("inf"), 10**309, -0.0]
    assert not any(map(is_positive_number, unfit))
