"""The spec goes to JSON and back without loss."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axzoo.spec import DecoderSpec, LayerSpec, PostSpec, RopeSpec

SIZES = st.integers(1, 2**31 - 1)
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROPES = st.builds(RopeSpec, NUMBERS, st.lists(NUMBERS, max_size=5).map(tuple), NUMBERS)
LAYERS = st.builds(
    LayerSpec, SIZES, SIZES, SIZES, SIZES, SIZES, NUMBERS, st.text(), st.booleans(), st.booleans(), ROPES, SIZES
)
SPECS = st.builds(
    DecoderSpec, st.text(), SIZES, SIZES, st.booleans(), LAYERS, st.builds(PostSpec, SIZES, SIZES, NUMBERS)
)
QWEN = LayerSpec(896, 4864, 14, 2, 64, 1e-6, "silu", True, False, RopeSpec(1e6, (1.0, 0.5)), 32768)


@given(spec=SPECS)
def test_through_json_and_back(spec: DecoderSpec) -> None:
    assert DecoderSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_widths() -> None:
    assert (QWEN.q_size, QWEN.kv_size) == (896, 128)
    assert replace(QWEN, head_dim=128).q_size == 1792


def test_specs_do_not_change_and_serve_as_keys() -> None:
    with pytest.raises(FrozenInstanceError):
        QWEN.hidden_size = 1  # type: ignore[misc]
    assert len({QWEN, replace(QWEN), replace(QWEN, head_dim=32)}) == 2


def test_a_dict_that_lacks_a_field() -> None:
    with pytest.raises(KeyError, match="inv_freq"):
        RopeSpec.from_dict({"theta": 1.0})
