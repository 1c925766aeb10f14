"""Keys without effect are passed over, checked against transformers; keys with an effect are refused unless ignored."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM

from axzoo.core.errors import AxzooError
from axzoo.model.config_keys import WITHOUT_EFFECT
from axzoo.model.config_view import has_config_key
from axzoo.model.families import supported_model_types
from axzoo.model.reading import merge_model_config, spec_of
from axzoo.model.spec import DecoderSpec
from tiny_model import make_checkpoint

PUBLISHED_CODE = {
    "minicpm": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
                "vocab_size": 262, "max_position_embeddings": 128, "rms_norm_eps": 1e-5},
    "chatglm": {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "kv_channels": 8, "ffn_hidden_size": 48,
                "multi_query_group_num": 2, "padded_vocab_size": 262, "seq_length": 128, "layernorm_epsilon": 1e-5,
                "add_qkv_bias": True},
}  # fmt: skip
PUBLISHED_CODE["minicpmv"] = PUBLISHED_CODE["minicpm"]
"""The families whose code is in their repositories: the keys that they must have."""

OWN_SHAPE: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 8},
    "phi": {"hidden_act": "gelu_new"},
    "smollm3": {"num_hidden_layers": 4},
}
SHAPES = {name: OWN_SHAPE.get(name, {}) for name in supported_model_types() if name not in PUBLISHED_CODE}
"""Every family that transformers has, with the sizes of its small model."""

IDS = torch.arange(1, 24)[None]

DUMP_OF_4: dict[str, Any] = {
    "_attn_implementation_autoset": True, "_name_or_path": "", "add_cross_attention": False, "architectures": None,
    "bad_words_ids": None, "begin_suppress_tokens": None, "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None, "decoder_start_token_id": None, "diversity_penalty": 0.0, "do_sample": False,
    "early_stopping": False, "encoder_no_repeat_ngram_size": 0, "exponential_decay_length_penalty": None,
    "finetuning_task": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "is_decoder": False, "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0, "max_length": 20, "min_length": 0,
    "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1,
    "output_attentions": False, "output_hidden_states": False, "output_scores": False, "prefix": None,
    "problem_type": None, "pruned_heads": {}, "remove_invalid_values": False, "repetition_penalty": 1.0,
    "return_dict": True, "return_dict_in_generate": False, "sep_token_id": None, "suppress_tokens": None,
    "task_specific_params": None, "temperature": 1.0, "tf_legacy_loss": False, "tie_encoder_decoder": False,
    "tokenizer_class": None, "top_k": 50, "top_p": 1.0, "torch_dtype": "bfloat16", "torchscript": False,
    "transformers_version": "4.51.3", "typical_p": 1.0, "use_bfloat16": False,
}  # fmt: skip
"""What to_dict() of every config of transformers 4 has besides the keys of its own class."""

VALUES: dict[str, Any] = {
    "_attn_implementation": "sdpa", "_attn_implementation_internal": "sdpa", "attn_implementation": "sdpa",
    "cache_implementation": "static", "num_labels": 1, "output_attentions": False,
    "unsloth_fixed": True, "_attn_implementation_autoset": True, "pretraining_tp": 2, "temperature": 0.6, "top_k": 1,
    "repetition_penalty": 1.3, "do_sample": True, "max_length": 9, "is_decoder": True, "use_bfloat16": True,
    "attention_dropout": 0.1, "hidden_dropout": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "initializer_range": 1.0,
    "dtype": "float16", "torch_dtype": "float16", "bos_token_id": 3, "eos_token_id": [1, 2], "pad_token_id": 3,
    "id2label": {"0": "a"}, "label2id": {"a": 0}, "model_max_length": 3, "max_sequence_length": 3, "seq_length": 3,
    "suppress_tokens": [1], "bad_words_ids": [[1]], "use_cache": False, "return_dict": True,
    "max_window_layers": 1, "use_mrope": True, "problem_type": "regression", "torchscript": False,
}  # fmt: skip
"""Values that would change something if the key had an effect; other keys get a number."""

NOT_TRIED = {"architectures", "auto_map", "model_type", "quantization_config"}
"""Keys that choose the code that transformers loads, or that axzoo checks elsewhere."""

NEUTRAL: list[tuple[str, Any]] = [
    ("add_cross_attention", False), ("alibi", False), ("full_attn_mod", 1), ("interpolate_factor", 1),
    ("is_causal", True), ("is_encoder_decoder", False), ("layer_types", ["full_attention"]), ("lm_head_bias", False),
    ("num_experts", None), ("pruned_heads", {}), ("qk_layernorm", False), ("rope_interleaved", False),
    ("tie_encoder_decoder", False), ("use_qk_norm", False), ("use_sliding_window", False), ("sliding_window", None),
    ("attn_logit_softcapping", None), ("nobody_knows_this_key", None),
]  # fmt: skip


class Family:
    """A small checkpoint with random weights, loaded again with other configs."""

    def __init__(self, model_type: str, folder: Path) -> None:
        self.model_type, self.folder = model_type, folder
        make_checkpoint(folder, SHAPES[model_type], model_type)
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.expected = self.logits({})

    def logits(self, changes: dict[str, Any]) -> NDArray[np.float32]:
        """What transformers computes with a changed config.json."""
        (self.folder / "config.json").write_text(json.dumps(self.config | changes))
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        with torch.inference_mode():
            logits: NDArray[np.float32] = model(IDS).logits.numpy()
        return logits

    def spec(self, changes: dict[str, Any], ignored: tuple[str, ...] = ()) -> DecoderSpec:
        """What axzoo reads from a changed config.json."""
        return spec_of(self.config | changes, self.folder / "config.json", ignored)


@pytest.fixture(scope="module", params=list(SHAPES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family("llama", tmp_path_factory.mktemp("llama"))


def _passed_over(family: Family) -> Iterator[tuple[str, Any]]:
    """Every key that is passed over, with a value that would change something if it were not."""
    own = {"max_window_layers"} & family.config.keys()
    for key in sorted(WITHOUT_EFFECT - NOT_TRIED - own - {"attention_bias", "mlp_bias"}):
        yield key, VALUES.get(key, 7)


def _is_accepted(family: Family, key: str, value: Any) -> bool:
    """Whether transformers accepts the type of the value."""
    try:
        AutoConfig.for_model(**family.config | {key: value})
    except Exception:  # its strict dataclasses raise errors of several libraries
        return False
    return True


def test_transformers_computes_the_same_with_every_passed_over_key(family: Family) -> None:
    expected = family.spec({})
    for key, value in _passed_over(family):
        assert family.spec({key: value}) == expected, key
    together = {key: value for key, value in _passed_over(family) if _is_accepted(family, key, value)}
    assert together.keys() >= VALUES.keys() - family.config.keys() - NOT_TRIED
    np.testing.assert_array_equal(family.logits(together), family.expected)


@pytest.mark.parametrize("key, value", NEUTRAL, ids=[key for key, _ in NEUTRAL])
def test_neutral_values_change_nothing(llama: Family, key: str, value: Any) -> None:
    changes = {key: value * 2 if key == "layer_types" else value}
    np.testing.assert_array_equal(llama.logits(changes), llama.expected)
    assert llama.spec(changes) == llama.spec({})


def test_the_bias_keys_of_other_families_are_settled_by_the_tensors(family: Family) -> None:
    for key in ("attention_bias", "mlp_bias"):
        if key not in family.config:
            assert family.spec({key: True}) == family.spec({})
            np.testing.assert_array_equal(family.logits({key: True}), family.expected)


def test_null_is_the_same_as_no_key(family: Family) -> None:
    """For every key of config.json: null is refused as a missing key is, or gives what transformers computes."""
    for key in sorted(family.config.keys() - {"model_type"}):
        without = {name: value for name, value in family.config.items() if name != key}
        try:
            expected = spec_of(without, family.folder / "config.json", ())
        except AxzooError as error:
            with pytest.raises(AxzooError, match=f"has no {key}"):
                family.spec({key: None})
            assert f"has no {key}" in str(error)
            continue
        assert family.spec({key: None}) == expected, key


@pytest.mark.parametrize("model_type", SHAPES)
@pytest.mark.parametrize("own", [{}, {"use_diff": False}], ids=["written", "whole"])
def test_default_configs_of_transformers_are_read(model_type: str, own: dict[str, Any]) -> None:
    shape = {"hidden_act": "gelu_new"} if model_type == "phi" else {}
    config = json.loads(AutoConfig.for_model(model_type, **shape).to_json_string(**own)) | {"model_type": model_type}
    defaults = AutoConfig.for_model(model_type, **shape).to_dict()
    spec = spec_of(defaults | config, Path("config.json"), ())
    assert (spec.layer.hidden_size, spec.num_hidden_layers) == (defaults["hidden_size"], defaults["num_hidden_layers"])


@pytest.mark.parametrize("model_type", [*SHAPES, *PUBLISHED_CODE])
def test_whole_dumps_of_transformers_4_are_read(model_type: str) -> None:
    if model_type in SHAPES:
        defaults = AutoConfig.for_model(model_type, **SHAPES[model_type]).to_dict()
        rope = defaults.pop("rope_parameters")
        defaults |= {"rope_theta": rope["rope_theta"], "rope_scaling": None}
        if "partial_rotary_factor" in rope:
            defaults["partial_rotary_factor"] = rope["partial_rotary_factor"]
    else:
        defaults = PUBLISHED_CODE[model_type] | {"model_type": model_type}
    path = Path("config.json")
    assert spec_of(DUMP_OF_4 | defaults, path, ()) == spec_of(defaults, path, ())


@pytest.mark.parametrize("name", ["swish", "silu"])
def test_another_name_of_the_same_activation(llama: Family, name: str) -> None:
    np.testing.assert_array_equal(llama.logits({"hidden_act": name}), llama.expected)
    assert llama.spec({"hidden_act": name}) == llama.spec({})


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_accurate"])
def test_another_name_of_gelu(tmp_path: Path, name: str) -> None:
    phi = Family("phi", tmp_path)
    np.testing.assert_allclose(phi.logits({"hidden_act": name}), phi.expected, atol=1e-5 * np.abs(phi.expected).max())
    assert phi.spec({"hidden_act": name}) == phi.spec({})


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "factor": 2.5}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
LONGROPE = {"rope_type": "longrope", "short_factor": [1.1] * 4, "long_factor": [2.0] * 4,
            "original_max_position_embeddings": 16}  # fmt: skip
DEFAULT = {"rope_type": "default"}

EXTRAS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *[(rope, {"finetuned": True}) for rope in (DEFAULT, LINEAR, DYNAMIC, LLAMA3, YARN, LONGROPE)],
    *[(rope, {"mrope_section": [2, 1, 1]}) for rope in (DEFAULT, LINEAR, DYNAMIC, YARN)],
    (DEFAULT, {"mrope_section": [2, 1, 1], "mrope_interleaved": True}),
    (DEFAULT, {"original_max_position_embeddings": 32}),
    (DEFAULT, {"factor": 4.0}),
    (DEFAULT, {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "beta_fast": 32}),
    (LINEAR, {"original_max_position_embeddings": 32}),
    (LINEAR, {"attention_factor": 1.0}),
    (DYNAMIC, {"original_max_position_embeddings": 32}),
    (LLAMA3, {"attention_factor": 1}),
    (YARN, {"attn_factor": 1.0}),
    (YARN, {"attn_factor": 1, "extrapolation_factor": 1}),
    *[(rope, {"attention_factor": None, "mscale": None, "nobody_knows": None}) for rope in (LINEAR, LLAMA3, YARN)],
]


@pytest.mark.parametrize("rope, extra", EXTRAS, ids=[f"{rope['rope_type']} {' '.join(e)}" for rope, e in EXTRAS])
@pytest.mark.parametrize("old", [False, True], ids=["rope_parameters", "rope_scaling"])
def test_rope_parameters_without_effect(llama: Family, rope: dict[str, Any], extra: dict[str, Any], old: bool) -> None:
    def changes(scaling: dict[str, Any]) -> dict[str, Any]:
        if old:
            return {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": scaling}
        return {"rope_parameters": {"rope_theta": 10000.0, **scaling}}

    np.testing.assert_array_equal(llama.logits(changes(rope | extra)), llama.logits(changes(rope)))
    assert llama.spec(changes(rope | extra)) == llama.spec(changes(rope))


@pytest.mark.parametrize(
    "rope, extra",
    [
        ({"type": "mrope", "mrope_section": [2, 1, 1]}, DEFAULT),  # of images; transformers has it in other classes
        ({"type": "mrope", "rope_type": "default"}, DEFAULT),
        (YARN | {"attn_factor": 0.5, "attention_factor": 1.25}, YARN | {"attention_factor": 1.25}),
        (YARN | {"truncate": None}, YARN | {"truncate": False}),
    ],
)
def test_rope_parameters_that_mean_others(llama: Family, rope: dict[str, Any], extra: dict[str, Any]) -> None:
    found, expected = ({"rope_parameters": None, "rope_scaling": scaling} for scaling in (rope, extra))
    assert llama.spec(found) == llama.spec(expected)
    if "type" not in rope:
        np.testing.assert_array_equal(llama.logits(found), llama.logits(expected))


WITH_EFFECT: list[tuple[str, dict[str, Any], str]] = [
    ("yarn", YARN | {"attn_factor": 0.878}, "attn_factor. transformers passes over attn_factor, but other programs"),
    ("yarn", YARN | {"extrapolation_factor": 0.5}, "extrapolation_factor"),
    ("yarn", YARN | {"nobody_knows": 1}, "nobody_knows"),
    ("linear", LINEAR | {"attention_factor": 1.2}, "attention_factor"),
    ("linear", LINEAR | {"low_freq_factor": 1.0}, "low_freq_factor"),
    ("dynamic", DYNAMIC | {"alpha": 1000.0}, "alpha"),
    ("llama3", LLAMA3 | {"beta_fast": 32}, "beta_fast"),
    ("longrope", LONGROPE | {"short_mscale": 1.2}, "short_mscale"),
    ("default", DEFAULT | {"alpha": 1000.0}, "alpha"),
]


@pytest.mark.parametrize("kind, rope, message", WITH_EFFECT, ids=[f"{k} {m.split('.')[0]}" for k, _, m in WITH_EFFECT])
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_other_rope_parameters_are_refused_unless_ignored(
    llama: Family, kind: str, rope: dict[str, Any], message: str, key: str
) -> None:
    changes = {"rope_parameters": None, key: rope}
    with pytest.raises(AxzooError) as error:
        llama.spec(changes)
    text = str(error.value)
    assert f"config.json: {key} has parameters that rope_type '{kind}' does not take: {message}" in text
    advice = text.rpartition("--ignore_config_keys ")[2].split()
    assert all(has_config_key(changes, name) for name in advice)
    allowed = {name: value for name, value in rope.items() if f"{key}.{name}" not in advice}
    assert llama.spec(changes, tuple(advice)) == llama.spec({"rope_parameters": None, key: allowed})


def test_the_other_advice_about_attn_factor_works(llama: Family) -> None:
    config = llama.config | {"rope_parameters": None, "rope_scaling": YARN | {"attn_factor": 0.5}}
    settled = {"rope_scaling": YARN | {"attn_factor": 0.5, "attention_factor": 1.5}}
    path = llama.folder / "config.json"
    spec = spec_of(merge_model_config(config, settled, path), path, ())
    assert spec.layer.rope.scaling["attention_factor"] == 1.5


@pytest.mark.parametrize(
    "scaling, message",
    [
        (
            {"type": "linear", "rope_type": "yarn", "factor": 2.0},
            "rope_type is 'yarn', but type, its older name, is 'lin",
        ),
        ({"factor": 2.0}, "the rope parameters factor have no rope_type: add it"),
    ],
)
def test_contradictory_rope_types(llama: Family, scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(AxzooError, match=rf"config\.json: {message}"):
        llama.spec({"rope_parameters": None, "rope_scaling": scaling})


def test_a_model_config_settles_contradictory_rope_keys(llama: Family) -> None:
    both = llama.config | {"rope_parameters": {"rope_theta": 5.0, **LINEAR}, "rope_scaling": YARN}
    path = llama.folder / "config.json"
    with pytest.raises(AxzooError, match="contradict each other"):
        spec_of(both, path, ())
    for wrong, kind in ("rope_scaling", "linear"), ("rope_parameters", "yarn"):
        spec = spec_of(merge_model_config(both, {wrong: None}, path), path, ())
        assert spec.layer.rope.scaling["rope_type"] == kind


REFUSED: list[tuple[str, Any, str]] = [
    ("sliding_window", 7, "this model_type has no sliding window in transformers"),
    ("num_experts", 8, "the model is a mixture of experts"),
    ("quantization", {"bits": 4}, "the weights are quantized by MLX"),
    ("is_encoder_decoder", True, ""),
    ("pruned_heads", {"0": [1]}, ""),
    ("is_causal", False, ""),
    ("rope_interleaved", True, ""),
    ("use_sliding_window", True, ""),
    ("layer_types", ["full_attention", "sliding_attention"], ""),
    ("embedding_multiplier", 12.0, ""),
    ("final_logit_softcapping", 30.0, ""),
    ("nobody_knows_this_key", 0, ""),
    ("a key\nof two lines", 0, "'a key\\nof two lines'. "),
    ("alibi", 0, ""),  # not false
]


@pytest.mark.parametrize("key, value, cause", REFUSED, ids=[key for key, _, _ in REFUSED])
def test_other_keys_are_refused_with_what_is_known_unless_ignored(
    llama: Family, key: str, value: Any, cause: str
) -> None:
    with pytest.raises(AxzooError) as error:
        llama.spec({key: value})
    text = str(error.value)
    assert "config.json has keys axzoo does not know: " in text
    assert (cause or f"know: {key}. ") in text
    assert "\n" not in text
    if key.isprintable():
        advice = shlex.split(text.rpartition("--ignore_config_keys ")[2])
        assert llama.spec({key: value}, tuple(advice)) == llama.spec({})


@pytest.mark.parametrize("rope", [3, "yarn", [], ["factor"], None, {}])
def test_a_rope_parameter_that_is_not_there_is_no_key(rope: Any) -> None:
    assert not has_config_key({"rope_scaling": rope, "rope_parameters": None}, "rope_scaling.factor")
    assert has_config_key({"rope_scaling": rope, "rope_parameters": {"factor": 2}}, "rope_scaling.factor")


@pytest.mark.parametrize("key", ["hidden_size", "rope_scaling", "rope_scaling.factor", "rope_parameters.factor"])
def test_a_key_that_the_build_depends_on_cannot_be_ignored(llama: Family, key: str) -> None:
    with pytest.raises(AxzooError, match=f"{key} cannot be ignored, because the build depends on it: remove it from"):
        llama.spec({"rope_parameters": None, "rope_scaling": LINEAR}, (key,))


HOSTILE: list[Any] = [0, -1, 1.5e308, 10**400, float("nan"), True, "1", "", [], {}, [{}], {"a": []}, "\n", None]


@pytest.mark.parametrize("rope", [DEFAULT, LINEAR, DYNAMIC, LLAMA3, YARN, LONGROPE], ids=lambda rope: rope["rope_type"])
def test_any_rope_parameters_are_read_or_refused_in_one_line(llama: Family, rope: dict[str, Any]) -> None:
    names = [*rope, "type", "attn_factor", "attention_factor", "mrope_section", "finetuned", "truncate", "a b\n", ""]
    for key in ("rope_parameters", "rope_scaling"):
        for name in names:
            for value in HOSTILE:
                try:
                    llama.spec({"rope_parameters": None, key: rope | {name: value}})
                except AxzooError as error:
                    assert "\n" not in str(error)
                    assert len(str(error)) < 2000
