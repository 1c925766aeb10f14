"""`--model_config` with keys of ax-llm-build or Hugging Face, on top of a config.json or in place of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axzoo.core.errors import AxzooError
from axzoo.model.config_view import ConfigView
from axzoo.model.families.llama import decoder_spec
from axzoo.model.reading import merge_model_config

PATH = Path("my.json")

# As published with ax-llm-build for TinyLlama, which in fact has 2048 positions.
TINYLLAMA: dict[str, Any] = {
    "model_name": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "model_type": "llama",
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "vocab_size": 32000,
    "rope_theta_base": 10000.0,
    "max_position_embedings": 4096,
    "rope_partial_factor": 1.0,
    "norm_eps": 1e-5,
    "norm_type": "rms_norm",
    "hidden_act": "silu",
}

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "vocab_size": 32000,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def merge(config: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    return merge_model_config(config, override, PATH)


def refusal(config: dict[str, Any], override: dict[str, Any]) -> str:
    with pytest.raises(AxzooError) as error:
        merge(config, override)
    return str(error.value)


def test_the_vendors_file_is_enough_to_describe_a_model() -> None:
    merged = merge({}, TINYLLAMA)
    view = ConfigView(merged, PATH)
    spec = decoder_spec(view)
    view.finish()
    assert merged == {
        "model_type": "llama",
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "vocab_size": 32000,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
    }
    assert spec.num_hidden_layers == 22


def test_the_vendors_file_overrides_config_json() -> None:
    assert merge(CONFIG, TINYLLAMA) == CONFIG | {"max_position_embeddings": 4096}


def test_hugging_faces_names_are_read_too() -> None:
    override = {"rope_theta": 5e5, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "head_dim": 96}
    assert merge(CONFIG, override) == CONFIG | override


@given(st.dictionaries(st.sampled_from(sorted(CONFIG.keys() - {"model_type"})), st.integers() | st.text()))
def test_overridden_keys_are_replaced_and_all_others_kept(override: dict[str, Any]) -> None:
    before = dict(CONFIG), dict(override)
    assert merge(CONFIG, override) == CONFIG | override
    assert (CONFIG, override) == before


def test_an_empty_override_changes_nothing() -> None:
    assert merge(CONFIG, {}) == CONFIG


def test_any_key_of_the_config_json_can_be_overridden() -> None:
    config = CONFIG | {"my_own": 1}
    assert merge(config, {"my_own": 2})["my_own"] == 2


def test_minicpm_on_the_hub_lacks_only_its_model_type() -> None:
    config = {key: value for key, value in CONFIG.items() if key != "model_type"} | {"scale_emb": 12}
    assert merge(config, {"model_type": "minicpm"}) == config | {"model_type": "minicpm"}
    assert refusal(config, {}) == "my.json: model_type is None, and config.json has none either: set it here"
    assert refusal(config, {"model_type": 7}).startswith("my.json: model_type is 7,")


def test_ax_llm_build_calls_qwen2_qwen() -> None:
    assert merge({}, {"model_type": "qwen"})["model_type"] == "qwen2"
    assert merge({"model_type": "qwen2"}, {"model_type": "qwen"})["model_type"] == "qwen2"
    assert (
        merge({"model_type": "qwen"}, {"hidden_size": 8})["model_type"] == "qwen"
    )  # the first Qwen is a different architecture


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("rope_theta_bse", "rope_theta_base"),
        ("max_position_embedding", "max_position_embeddings"),
        ("max_position_embeding", "max_position_embedings"),
        ("norm_esp", "norm_eps"),
        ("num_hiden_layers", "num_hidden_layers"),
        ("modle_name", "model_name"),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion(key: str, nearest: str) -> None:
    assert refusal(CONFIG, {key: 1}) == f"my.json: unknown key {key!r}: did you mean {nearest!r}?"


def test_an_unknown_key_without_a_similar_one_is_refused() -> None:
    assert refusal(CONFIG, {"qqq": 1}) == (
        "my.json: unknown key 'qqq': neither ax-llm-build nor config.json has such a key"
    )
    assert len(refusal(CONFIG, {"q" * 10_000: 1})) < 200


def test_one_value_under_two_names_is_refused() -> None:
    assert refusal(CONFIG, {"rope_theta": 1, "rope_theta_base": 2}) == (
        "my.json sets the same value twice, as rope_theta and as rope_theta_base: remove one of them"
    )


@pytest.mark.parametrize(
    ("model_type", "override", "message"),
    [
        ("llama", {"norm_type": "layer_norm"}, "norm_type is 'layer_norm', but is always 'rms_norm' in llama"),
        ("phi", {"norm_type": "rms_norm"}, "norm_type is 'rms_norm', but is always 'layer_norm' in phi"),
        ("llama", {"rope_partial_factor": 0.4}, "rope_partial_factor is 0.4, but is always 1.0 in llama"),
        ("chatglm", {"rope_partial_factor": 1.0}, "rope_partial_factor is 1.0, but is always 0.5 in chatglm"),
        ("phi", {"scale_emb": 12}, "unknown key 'scale_emb': neither ax-llm-build nor config.json has such a key"),
    ],
)
def test_values_a_model_type_cannot_have_are_refused(model_type: str, override: dict[str, Any], message: str) -> None:
    assert refusal({"model_type": model_type}, override) == f"my.json: {message}"


def test_a_familys_own_keys() -> None:
    assert merge({}, {"model_type": "minicpm", "scale_emb": 12})["scale_emb"] == 12
    assert merge({}, {"model_type": "phi3", "rope_partial_factor": 0.75})["partial_rotary_factor"] == 0.75
    assert (
        merge({"model_type": "unheard_of"}, {"hidden_size": 8})["hidden_size"] == 8
    )  # making the lock refuses the type


def test_phis_own_names() -> None:
    override = {"norm_eps": 1e-5, "norm_type": "layer_norm", "rope_partial_factor": 0.4, "hidden_act": "gelu_new"}
    assert merge({"model_type": "phi"}, override) == {
        "model_type": "phi",
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.4,
        "hidden_act": "gelu_new",
    }


def test_chatglms_own_names() -> None:
    override = {
        "model_type": "chatglm",
        "num_hidden_layers": 28,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "vocab_size": 65024,
        "rope_theta_base": 500000,
        "rope_partial_factor": 0.5,
        "max_position_embedings": 32768,
        "norm_eps": 1e-5,
        "norm_type": "rms_norm",
        "hidden_act": "silu",
    }
    assert merge({"kv_channels": 128}, override) == {
        "model_type": "chatglm",
        "kv_channels": 128,
        "num_layers": 28,
        "num_attention_heads": 32,
        "multi_query_group_num": 2,
        "hidden_size": 4096,
        "ffn_hidden_size": 13696,
        "padded_vocab_size": 65024,
        "rope_theta": 500000,
        "seq_length": 32768,
        "layernorm_epsilon": 1e-5,
    }
    assert merge({"model_type": "chatglm", "rope_ratio": 1}, {"rope_ratio": 50})["rope_ratio"] == 50


def rope(config: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    spec = ConfigView(config, PATH).rope(8, 64)
    return spec.theta, spec.scaling


def test_either_half_of_rope_parameters_can_be_overridden() -> None:
    scaled = {"rope_type": "linear", "factor": 2.0}
    config = {"model_type": "llama", "rope_parameters": {"rope_theta": 1e6, **scaled}}
    assert rope(merge(config, {})) == (1e6, scaled) == rope(config)
    assert rope(merge(config, {"rope_theta_base": 5e5})) == (5e5, scaled)
    assert rope(merge(config, {"rope_scaling": None})) == (1e6, {"rope_type": "default"})
    assert rope(merge(config, {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}))[0] == 7.0
    assert rope(merge(config, {"rope_parameters": {"type": "dynamic", "factor": 4.0}})) == (
        1e6,
        {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 64},
    )


def test_partial_rotary_factor_inside_rope_parameters_can_be_overridden() -> None:
    config = {"model_type": "phi", "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.4}}
    assert merge(config, {"rope_partial_factor": 0.5})["partial_rotary_factor"] == 0.5
