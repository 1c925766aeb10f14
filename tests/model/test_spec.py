"""Specs survive a round trip through JSON, also between versions, and refuse unknown names."""

from __future__ import annotations

import json
from dataclasses import MISSING, FrozenInstanceError, asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axzoo.core.errors import AxzooError
from axzoo.model.rope import frequencies, make_rope
from axzoo.model.spec import (
    ACTIVATIONS,
    NORM_KINDS,
    DecoderSpec,
    LayerSpec,
    NormSpec,
    PostSpec,
    RopeSpec,
    SpecError,
    UnknownFieldError,
)

SIZES = st.integers(1, 2**31 - 1)
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)
FLAGS = st.booleans()
PARAMETERS: Any = st.dictionaries(st.text(), NUMBERS | st.booleans() | st.lists(NUMBERS, max_size=4), max_size=4)
ROPES = st.builds(RopeSpec, NUMBERS, SIZES, FLAGS, PARAMETERS)
NORMS = st.builds(NormSpec, st.sampled_from(NORM_KINDS), NUMBERS)
LAYERS = st.builds(
    LayerSpec,
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"), SIZES),
    **dict.fromkeys(("gated", "parallel", "qk_norm", "qkv_bias", "o_bias", "mlp_bias"), FLAGS),
    **dict.fromkeys(("input_scale", "residual_scale"), NUMBERS),
    head_dim=SIZES,
    norm=NORMS,
    rope=ROPES,
    max_position_embeddings=SIZES,
    hidden_act=st.sampled_from(ACTIVATIONS),
    sliding_window=st.none() | SIZES,
)
SPECS = st.builds(
    DecoderSpec,
    model_type=st.text(),
    num_hidden_layers=SIZES,
    vocab_size=SIZES,
    tie_word_embeddings=FLAGS,
    layer=LAYERS,
    post=st.builds(PostSpec, SIZES, SIZES, NORMS, FLAGS, NUMBERS),
    embedding_scale=NUMBERS,
    sliding_windows=st.lists(st.none() | SIZES, max_size=4).map(tuple),
    rotary_layers=st.lists(FLAGS, max_size=4).map(tuple),
)
RMS = NormSpec("rms_norm", 1e-6)
QWEN = LayerSpec(896, 4864, 14, 2, 64, RMS, RopeSpec(1e6, 64), 32768, qkv_bias=True)
WHOLE = DecoderSpec("qwen2", 3, 151936, True, QWEN, PostSpec(896, 151936, RMS))


@given(spec=SPECS)
def test_json_round_trip(spec: DecoderSpec) -> None:
    assert DecoderSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_json_round_trip_of_longrope() -> None:
    scaling = {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2, 3.5]}
    rope = make_rope(4, 1e4, scaling | {"original_max_position_embeddings": 8}, 32)
    spec = replace(WHOLE, layer=replace(QWEN, rope=rope))
    assert DecoderSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_widths() -> None:
    assert (QWEN.q_size, QWEN.kv_size) == (896, 128)
    assert replace(QWEN, head_dim=128).q_size == 1792


def test_all_layers_are_equal_by_default() -> None:
    assert [WHOLE.layer_spec(index) for index in range(3)] == [QWEN] * 3
    assert PostSpec(896, 151936, RMS) == PostSpec(896, 151936, RMS, lm_head_bias=False, logit_scale=1.0)


def test_layer_0_scales_the_embedding_and_each_layer_has_its_window() -> None:
    spec = replace(WHOLE, embedding_scale=12.0, sliding_windows=(None, 7, None))
    assert [spec.layer_spec(index) for index in range(3)] == [
        replace(QWEN, input_scale=12.0),
        replace(QWEN, sliding_window=7),
        QWEN,
    ]


def test_a_layer_without_rotation() -> None:
    """It keeps the rope's other values, on which the model's supported length depends."""
    spec = replace(WHOLE, rotary_layers=(True, False, True))
    still = replace(QWEN, rope=RopeSpec(1e6, 0))
    assert [spec.layer_spec(index) for index in range(3)] == [QWEN, still, QWEN]


def test_specs_are_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        QWEN.hidden_size = 1  # type: ignore[misc]


def _defaulted(kind: Any) -> list[Any]:
    return [
        pytest.param(kind, member.name, id=f"{kind.__name__}.{member.name}")
        for member in fields(kind)
        if member.default is not MISSING or member.default_factory is not MISSING
    ]


DEFAULTED = [case for kind in (RopeSpec, NormSpec, LayerSpec, PostSpec, DecoderSpec) for case in _defaulted(kind)]
STORED = {
    RopeSpec: asdict(RopeSpec(1e6, 64)),
    NormSpec: asdict(RMS),
    LayerSpec: asdict(QWEN),
    PostSpec: asdict(WHOLE.post),
    DecoderSpec: asdict(WHOLE),
}


@pytest.mark.parametrize("kind, name", DEFAULTED)
def test_a_field_that_an_older_version_did_not_write_takes_its_default(kind: Any, name: str) -> None:
    data = dict(STORED[kind])
    del data[name]
    member = next(member for member in fields(kind) if member.name == name)
    default = member.default_factory() if callable(member.default_factory) else member.default
    assert kind.from_dict(data) == replace(kind.from_dict(STORED[kind]), **{name: default})


def test_an_older_versions_nested_spec() -> None:
    data = WHOLE.to_dict()
    del data["layer"]["qk_norm"], data["layer"]["rope"]["scaling"], data["post"]["logit_scale"]
    assert DecoderSpec.from_dict(data) == WHOLE


@pytest.mark.parametrize("kind, data, missing", [
    (RopeSpec, {"theta": 1.0}, "rotary_dim"),
    (NormSpec, {"kind": "rms_norm"}, "eps"),
    (PostSpec, {"hidden_size": 1, "vocab_size": 2, "norm": {"kind": "rms_norm"}}, "eps"),
])  # fmt: skip
def test_a_missing_field_without_default(kind: Any, data: dict[str, Any], missing: str) -> None:
    with pytest.raises(KeyError, match=missing):
        kind.from_dict(data)


@pytest.mark.parametrize("kind", STORED)
def test_a_field_from_the_future(kind: Any) -> None:
    message = (
        f"{kind.__name__} has fields this version of axzoo does not know: 'attention_sinks', 'chunk'. A newer version"
    )
    with pytest.raises(UnknownFieldError, match=message):
        kind.from_dict({**STORED[kind], "chunk": 8, "attention_sinks": True})


def test_a_nested_field_from_the_future() -> None:
    data = WHOLE.to_dict()
    data["layer"]["norm"]["offset"] = 1.0
    with pytest.raises(UnknownFieldError, match=r"NormSpec has fields .*'offset'"):
        DecoderSpec.from_dict(data)


@pytest.mark.parametrize("data", [None, [], "spec", 1])
def test_data_that_is_not_a_mapping(data: Any) -> None:
    with pytest.raises(TypeError, match=r"NormSpec is .* not a mapping"):
        NormSpec.from_dict(data)
    with pytest.raises(TypeError, match=r"LayerSpec is .* not a mapping"):
        DecoderSpec.from_dict({**WHOLE.to_dict(), "layer": data})


@pytest.mark.parametrize("act", ["relu", "gelu", "", None, ["silu"]])
def test_an_unknown_activation(act: Any) -> None:
    message = r"hidden_act .* is not supported; supported are: silu, gelu_new"
    with pytest.raises(SpecError, match=message):
        replace(QWEN, hidden_act=act)
    with pytest.raises(SpecError, match=message):
        LayerSpec.from_dict({**asdict(QWEN), "hidden_act": act})
    data = WHOLE.to_dict()
    data["layer"]["hidden_act"] = act
    with pytest.raises(SpecError, match=message):
        DecoderSpec.from_dict(data)


@pytest.mark.parametrize("kind", ["batch_norm", "", None, ["rms_norm"]])
def test_an_unknown_norm(kind: Any) -> None:
    message = r"norm .* is not supported; supported are: rms_norm, layer_norm"
    with pytest.raises(SpecError, match=message):
        NormSpec(kind, 1e-6)
    with pytest.raises(SpecError, match=message):
        NormSpec.from_dict({"kind": kind, "eps": 1e-6})


def test_an_unknown_rope_type() -> None:
    with pytest.raises(AxzooError, match=r"rope_type 'ntk' is not supported; supported are: default, linear"):
        frequencies(RopeSpec(1e4, 8, scaling={"rope_type": "ntk"}), 16)
