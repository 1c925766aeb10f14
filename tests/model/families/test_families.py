"""What each family reads from a published config.json: the spec, and the names, shapes and rows of its tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from axzoo.core.errors import AxzooError
from axzoo.model.config_view import ConfigView
from axzoo.model.families import load_family, supported_model_types
from axzoo.model.reading import read_spec
from axzoo.model.spec import DecoderSpec, LayerSpec, NormSpec, PostSpec, RopeSpec, TensorRef, VisionSpec

PATH = Path("there/config.json")
RMS, RMS_6, LAYER_NORM = NormSpec("rms_norm", 1e-5), NormSpec("rms_norm", 1e-6), NormSpec("layer_norm", 1e-5)

SHAPE: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
}
"""Small sizes, to keep the cases readable; everything else in a config is as published."""

USUAL: dict[str, Any] = {
    **SHAPE,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-05,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0",
    "use_cache": True,
}


@dataclass(frozen=True)
class Case:
    """A config, its spec, and the tensors of layer 0, the post layer and the embedding."""

    config: dict[str, Any]
    spec: DecoderSpec
    layer: dict[str, TensorRef]
    post: dict[str, TensorRef]
    embed: str


def _spec(model_type: str, layer: LayerSpec, norm: NormSpec, post: dict[str, Any], **more: Any) -> DecoderSpec:
    usual = {"num_hidden_layers": 3, "vocab_size": 100, "tie_word_embeddings": False}
    return DecoderSpec(**{**usual, **more}, model_type=model_type, layer=layer, post=PostSpec(48, 100, norm, **post))


def _layer(rope: RopeSpec, norm: NormSpec = RMS, **more: Any) -> LayerSpec:
    usual = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6, "num_key_value_heads": 2}
    return LayerSpec(**{**usual, "head_dim": 8, "max_position_embeddings": 4096, **more}, norm=norm, rope=rope)


def _refs(prefix: str, names: dict[str, tuple[Any, ...]]) -> dict[str, TensorRef]:
    """role: (name after the prefix, shape, and the rows of a fused tensor)."""
    return {role: TensorRef(prefix + name, *rest) for role, (name, *rest) in names.items()}


def _llama_tensors(
    prefix: str = "", width: int = 48, biases: tuple[str, ...] = (), **more: Any
) -> dict[str, TensorRef]:
    names: dict[str, tuple[Any, ...]] = {
        "input_norm.weight": ("input_layernorm.weight", (48,)),
        "mlp_norm.weight": ("post_attention_layernorm.weight", (48,)),
        "q_proj.weight": ("self_attn.q_proj.weight", (width, 48)),
        "k_proj.weight": ("self_attn.k_proj.weight", (width // 3, 48)),
        "v_proj.weight": ("self_attn.v_proj.weight", (width // 3, 48)),
        "o_proj.weight": ("self_attn.o_proj.weight", (48, width)),
        "gate_proj.weight": ("mlp.gate_proj.weight", (80, 48)),
        "up_proj.weight": ("mlp.up_proj.weight", (80, 48)),
        "down_proj.weight": ("mlp.down_proj.weight", (48, 80)),
    }
    for role in biases:
        name, shape = names[f"{role}.weight"]
        names[f"{role}.bias"] = (name.replace("weight", "bias"), shape[:1])
    return _refs(f"{prefix}model.layers.0.", names | more)


def _llama_post(head: str = "lm_head.weight", prefix: str = "") -> dict[str, TensorRef]:
    return _refs(prefix, {"norm.weight": ("model.norm.weight", (48,)), "lm_head.weight": (head, (100, 48))})


LLAMA3 = {
    "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 1024,
    "rope_type": "llama3",
}  # fmt: skip
LONGROPE = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.5, 3.5, 4.5]}
MINICPM = {**USUAL, "model_type": "minicpm", "scale_emb": 12, "dim_model_base": 16, "scale_depth": 1.4}
MINICPM_LAYER = _layer(RopeSpec(10000.0, 8), residual_scale=1.4 / 3**0.5)
EMBED, QKV = "model.embed_tokens.weight", ("q_proj", "k_proj", "v_proj")

SO400M = VisionSpec(
    patch_size=14,
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=26,
    num_attention_heads=16,
    position_grid=27,
    output_size=48,
    query_grid=8,
    resampler_heads=1,
)
"""timm's vit_so400m_patch14_siglip_384 without its last block."""


CASES: dict[str, Case] = {
    "llama: Llama-3.2-1B": Case(
        {
            **USUAL, "architectures": ["LlamaForCausalLM"], "attention_bias": False, "head_dim": 16, "mlp_bias": False,
            "model_type": "llama", "pretraining_tp": 1, "rope_scaling": LLAMA3, "rope_theta": 500000.0,
            "tie_word_embeddings": True,
        },
        _spec("llama", _layer(RopeSpec(500000.0, 16, False, LLAMA3), head_dim=16), RMS, {}, tie_word_embeddings=True),
        _llama_tensors(width=96),
        _llama_post(EMBED),
        EMBED,
    ),
    "llama: Llama-2-7b, which says neither theta nor biases": Case(
        {**USUAL, "model_type": "llama", "pad_token_id": 0, "pretraining_tp": 1, "rope_scaling": None},
        _spec("llama", _layer(RopeSpec(10000.0, 8)), RMS, {}),
        _llama_tensors(),
        _llama_post(),
        EMBED,
    ),
    "qwen2: Qwen2-0.5B-Instruct": Case(
        {
            **USUAL, "max_window_layers": 3, "model_type": "qwen2", "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
            "sliding_window": 32, "tie_word_embeddings": True, "use_sliding_window": False,
        },
        _spec("qwen2", _layer(RopeSpec(1e6, 8), RMS_6, qkv_bias=True), RMS_6, {}, tie_word_embeddings=True),
        _llama_tensors(biases=QKV),
        _llama_post(EMBED),
        EMBED,
    ),
    "qwen2, windows from the second layer on": Case(
        {**USUAL, "max_window_layers": 1, "model_type": "qwen2", "sliding_window": 32, "use_sliding_window": True},
        _spec("qwen2", _layer(RopeSpec(1e4, 8), qkv_bias=True), RMS, {}, sliding_windows=(None, 32, 32)),
        _llama_tensors(biases=QKV),
        _llama_post(),
        EMBED,
    ),
    "qwen3: Qwen3-0.6B": Case(
        {
            **USUAL, "attention_bias": False, "head_dim": 32, "max_window_layers": 3, "model_type": "qwen3",
            "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
            "use_sliding_window": False,
        },
        _spec("qwen3", _layer(RopeSpec(1e6, 32), head_dim=32, qk_norm=True), RMS, {}, tie_word_embeddings=True),
        _llama_tensors(width=192, **{
            "q_norm.weight": ("self_attn.q_norm.weight", (32,)),
            "k_norm.weight": ("self_attn.k_norm.weight", (32,)),
        }),
        _llama_post(EMBED),
        EMBED,
    ),
    "smollm3, every key set": Case(
        {
            **USUAL, "attention_bias": True, "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "max_window_layers": 28, "mlp_bias": True, "model_type": "smollm3", "no_rope_layer_interval": 4,
            "no_rope_layers": [0, 1, 0, 1], "pretraining_tp": 2, "rope_scaling": None, "rope_theta": 5000000.0,
            "sliding_window": 32, "tie_word_embeddings": False, "use_sliding_window": True,
        },
        _spec(
            "smollm3", _layer(RopeSpec(5e6, 8), qkv_bias=True, o_bias=True, mlp_bias=True), RMS, {},
            sliding_windows=(None, 32, None), rotary_layers=(False, True, False),
        ),
        _llama_tensors(biases=(*QKV, "o_proj", "gate_proj", "up_proj", "down_proj")),
        _llama_post(),
        EMBED,
    ),
    "smollm3, every default": Case(
        {**USUAL, "model_type": "smollm3"},
        _spec(
            "smollm3", _layer(RopeSpec(2e6, 8)), RMS, {}, tie_word_embeddings=True, rotary_layers=(True, True, True)
        ),
        _llama_tensors(),
        _llama_post(EMBED),
        EMBED,
    ),
    "smollm3, every second layer, with windows": Case(
        {
            **USUAL, "model_type": "smollm3", "no_rope_layer_interval": 2, "no_rope_layers": None,
            "sliding_window": 32, "use_sliding_window": True,
        },
        _spec(
            "smollm3", _layer(RopeSpec(2e6, 8)), RMS, {}, tie_word_embeddings=True,
            sliding_windows=(None, 32, None), rotary_layers=(True, False, True),
        ),
        _llama_tensors(),
        _llama_post(EMBED),
        EMBED,
    ),
    "phi: phi-2": Case(
        {
            **{key: value for key, value in USUAL.items() if key != "rms_norm_eps"}, "embd_pdrop": 0.0,
            "hidden_act": "gelu_new", "layer_norm_eps": 1e-05, "model_type": "phi", "num_attention_heads": 2,
            "num_key_value_heads": 2, "hidden_size": 48, "partial_rotary_factor": 0.5, "qk_layernorm": False,
            "resid_pdrop": 0.1, "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False,
        },
        _spec(
            "phi",
            _layer(
                RopeSpec(10000.0, 12), LAYER_NORM, head_dim=24, num_attention_heads=2, hidden_act="gelu_new",
                gated=False, parallel=True, qkv_bias=True, o_bias=True, mlp_bias=True,
            ),
            LAYER_NORM,
            {"lm_head_bias": True},
        ),
        _refs("model.layers.0.", {
            "input_norm.weight": ("input_layernorm.weight", (48,)),
            "input_norm.bias": ("input_layernorm.bias", (48,)),
            **{f"{role}.{part}": (f"self_attn.{name}.{part}", shape) for role, name in
               {**{role: role for role in QKV}, "o_proj": "dense"}.items()
               for part, shape in (("weight", (48, 48)), ("bias", (48,)))},
            "up_proj.weight": ("mlp.fc1.weight", (80, 48)),
            "up_proj.bias": ("mlp.fc1.bias", (80,)),
            "down_proj.weight": ("mlp.fc2.weight", (48, 80)),
            "down_proj.bias": ("mlp.fc2.bias", (48,)),
        }),
        _refs("", {
            "norm.weight": ("model.final_layernorm.weight", (48,)),
            "norm.bias": ("model.final_layernorm.bias", (48,)),
            "lm_head.weight": ("lm_head.weight", (100, 48)),
            "lm_head.bias": ("lm_head.bias", (100,)),
        }),
        EMBED,
    ),
    "phi3: Phi-3-mini-128k as first published, with rope_type su": Case(
        {
            **USUAL, "attention_bias": False, "embd_pdrop": 0.0, "model_type": "phi3", "resid_pdrop": 0.0,
            "original_max_position_embeddings": 1024, "rope_scaling": {**LONGROPE, "type": "su"},
            "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": False,
        },
        _spec(
            "phi3",
            _layer(RopeSpec(10000.0, 8, False, {
                "rope_type": "longrope", **LONGROPE, "original_max_position_embeddings": 1024, "factor": 4.0,
            })),
            RMS,
            {},
            sliding_windows=(262144,) * 3,
        ),
        _refs("model.layers.0.", {
            "input_norm.weight": ("input_layernorm.weight", (48,)),
            "mlp_norm.weight": ("post_attention_layernorm.weight", (48,)),
            "q_proj.weight": ("self_attn.qkv_proj.weight", (80, 48), (0, 48)),
            "k_proj.weight": ("self_attn.qkv_proj.weight", (80, 48), (48, 64)),
            "v_proj.weight": ("self_attn.qkv_proj.weight", (80, 48), (64, 80)),
            "o_proj.weight": ("self_attn.o_proj.weight", (48, 48)),
            "gate_proj.weight": ("mlp.gate_up_proj.weight", (160, 48), (0, 80)),
            "up_proj.weight": ("mlp.gate_up_proj.weight", (160, 48), (80, 160)),
            "down_proj.weight": ("mlp.down_proj.weight", (48, 80)),
        }),
        _llama_post(),
        EMBED,
    ),
    "minicpm: MiniCPM-2B-sft, tied by default": Case(
        MINICPM,
        _spec("minicpm", MINICPM_LAYER, RMS, {"logit_scale": 16 / 48}, tie_word_embeddings=True, embedding_scale=12.0),
        _llama_tensors(),
        _llama_post(EMBED),
        EMBED,
    ),
    "minicpm: MiniCPM-2B-128k, four times the training length": Case(
        {
            **MINICPM, "max_length": 131072, "rope_scaling": {"type": "dynamic", "factor": 4.0},
            "rope_theta": 1000000.0, "tie_word_embeddings": False,
        },
        _spec(
            "minicpm",
            replace(
                MINICPM_LAYER,
                rope=RopeSpec(1e6, 8, False, {
                    "rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 4096,
                }),
            ),
            RMS,
            {"logit_scale": 16 / 48},
            embedding_scale=12.0,
        ),
        _llama_tensors(),
        _llama_post(),
        EMBED,
    ),
    "minicpmv: MiniCPM-V-2": Case(
        {
            **MINICPM, "attention_bias": False, "drop_vision_last_layer": True, "image_size": 448,
            "max_slice_nums": 9, "mm_use_im_start_end": True, "model_type": "minicpmv", "patch_size": 14,
            "pretraining_tp": 1, "query_num": 64, "rope_scaling": None, "rope_theta": 10000.0,
            "scale_resolution": 448, "slice_mode": True, "tie_word_embeddings": False,
            "vision_encoder": "vit_so400m_patch14_siglip_384.webli",
        },
        _spec("minicpmv", MINICPM_LAYER, RMS, {"logit_scale": 16 / 48}, embedding_scale=12.0, vision=SO400M),
        _llama_tensors("llm."),
        _llama_post(prefix="llm."),
        f"llm.{EMBED}",
    ),
    "chatglm: chatglm3-6b-32k": Case(
        {
            "_name_or_path": "THUDM/chatglm3-6b-32k", "model_type": "chatglm", "architectures": ["ChatGLMModel"],
            "add_bias_linear": False,
            "add_qkv_bias": True, "apply_query_key_layer_scaling": True,
            "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0,
            "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "ffn_hidden_size": 80,
            "fp32_residual_connection": False, "hidden_dropout": 0.0, "hidden_size": 48, "kv_channels": 8,
            "layernorm_epsilon": 1e-05, "rope_ratio": 50, "multi_query_attention": True, "multi_query_group_num": 2,
            "num_attention_heads": 6, "num_layers": 3, "original_rope": True, "padded_vocab_size": 100,
            "post_layer_norm": True, "rmsnorm": True, "seq_length": 4096, "use_cache": True,
            "torch_dtype": "float16", "tie_word_embeddings": False, "eos_token_id": 2, "pad_token_id": 0,
        },
        _spec("chatglm", _layer(RopeSpec(500000.0, 4, True), qkv_bias=True), RMS, {}),
        _refs("transformer.encoder.layers.0.", {
            "input_norm.weight": ("input_layernorm.weight", (48,)),
            "mlp_norm.weight": ("post_attention_layernorm.weight", (48,)),
            "q_proj.weight": ("self_attention.query_key_value.weight", (80, 48), (0, 48)),
            "k_proj.weight": ("self_attention.query_key_value.weight", (80, 48), (48, 64)),
            "v_proj.weight": ("self_attention.query_key_value.weight", (80, 48), (64, 80)),
            "q_proj.bias": ("self_attention.query_key_value.bias", (80,), (0, 48)),
            "k_proj.bias": ("self_attention.query_key_value.bias", (80,), (48, 64)),
            "v_proj.bias": ("self_attention.query_key_value.bias", (80,), (64, 80)),
            "o_proj.weight": ("self_attention.dense.weight", (48, 48)),
            "gate_proj.weight": ("mlp.dense_h_to_4h.weight", (160, 48), (0, 80)),
            "up_proj.weight": ("mlp.dense_h_to_4h.weight", (160, 48), (80, 160)),
            "down_proj.weight": ("mlp.dense_4h_to_h.weight", (48, 80)),
        }),
        _refs("transformer.", {
            "norm.weight": ("encoder.final_layernorm.weight", (48,)),
            "lm_head.weight": ("output_layer.weight", (100, 48)),
        }),
        "transformer.embedding.word_embeddings.weight",
    ),
}  # fmt: skip


def _read(config: dict[str, Any]) -> DecoderSpec:
    view = ConfigView(config, PATH)
    spec = load_family(config["model_type"]).decoder_spec(view)
    view.finish()
    return spec


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_published_config(case: Case) -> None:
    family = load_family(case.spec.model_type)
    assert _read(case.config) == case.spec
    assert family.layer_tensors(case.spec, 0) == case.layer
    assert family.post_tensors(case.spec) == case.post
    assert family.embed_tensor(case.spec) == TensorRef(case.embed, (100, 48))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_layers_do_not_share_tensors(case: Case) -> None:
    family = load_family(case.spec.model_type)
    first, last = (family.layer_tensors(case.spec, index) for index in (0, 2))
    assert {role: replace(ref, name=ref.name.replace("layers.0.", "layers.2.")) for role, ref in first.items()} == last


def test_every_family_has_a_case() -> None:
    assert {case.spec.model_type for case in CASES.values()} == set(supported_model_types())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_size_is_required(case: Case) -> None:
    """A config with a missing or impossible size is refused, and the message names the key."""
    optional = {
        "num_key_value_heads",
        "max_window_layers",
        "no_rope_layer_interval",
        "sliding_window",
        "query_num",
        "image_size",
        "patch_size",
        "max_slice_nums",
        "max_length",
        "head_dim",
        "original_max_position_embeddings",
        "scale_resolution",
    }
    sizes = [key for key, value in case.config.items() if type(value) is int and not key.endswith("_id")]
    for key in [key for key in sizes if key not in optional and not key.startswith(("scale_", "rope_", "dim_", "pre"))]:
        for config in ({k: v for k, v in case.config.items() if k != key}, case.config | {key: -1}):
            with pytest.raises(AxzooError, match=rf"there/config\.json.* {key}"):
                _read(config)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("llama: Llama-3.2-1B", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("llama: Llama-3.2-1B", {"sliding_window": 32}, "does not know: sliding_window"),
    ("llama: Llama-3.2-1B", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, but must be 1"),
    ("qwen2: Qwen2-0.5B-Instruct", {"use_sliding_window": "no"}, "use_sliding_window is 'no'"),
    ("qwen2: Qwen2-0.5B-Instruct", {"max_window_layers": -1}, "max_window_layers is -1"),
    ("qwen3: Qwen3-0.6B", {"head_dim": 31}, "needs an even number of dimensions from 2 to 65536, not 31"),
    (
        "smollm3, every default",
        {"no_rope_layers": [1, 0]},
        r"no_rope_layers is \[1, 0\], but must be a list of 0 and 1",
    ),
    ("smollm3, every default", {"no_rope_layers": [1, 0, 2]}, "with an entry for each of the 3 layers"),
    ("smollm3, every default", {"no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
    ("smollm3, every key set", {"use_sliding_window": False}, "use_sliding_window is False, but must be True"),
    ("phi: phi-2", {"hidden_act": "gelu"}, "hidden_act is 'gelu', but must be 'gelu_new'"),
    ("phi: phi-2", {"qk_layernorm": True}, "qk_layernorm is True, but must be False"),
    ("phi: phi-2", {"tie_word_embeddings": True}, "tie_word_embeddings is True"),
    ("minicpm: MiniCPM-2B-sft, tied by default", {"scale_depth": 0}, "scale_depth is 0, but must be a positive"),
    (
        "minicpm: MiniCPM-2B-128k, four times the training length",
        {"rope_scaling": {"type": "dynamic", "factor": 1e308}},
        "gives frequencies that are not positive and finite",
    ),
    ("minicpm: MiniCPM-2B-sft, tied by default", {"num_experts": 8}, "does not know: num_experts"),
    ("chatglm: chatglm3-6b-32k", {"add_bias_linear": True}, "add_bias_linear is True, but must be False"),
    ("chatglm: chatglm3-6b-32k", {"multi_query_attention": False}, "multi_query_attention is False"),
    ("chatglm: chatglm3-6b-32k", {"multi_query_group_num": 4}, "must be a multiple of multi_query_group_num, 4"),
    ("chatglm: chatglm3-6b-32k", {"pre_seq_len": 128}, "pre_seq_len is 128, but must be 0"),
    ("chatglm: chatglm3-6b-32k", {"quantization_bit": 4}, "quantization_bit is 4, but must be 0"),
    (
        "chatglm: chatglm3-6b-32k",
        {"_name_or_path": "THUDM/chatglm2-6b-32k"},
        r"rope_ratio 50 .* divides the positions in ChatGLM2-6B-32k.*'THUDM/chatglm2-6b-32k'.*\"rope_theta\": 500000",
    ),
    ("chatglm: chatglm3-6b-32k", {"_name_or_path": None}, r"_name_or_path '' does not identify the model"),
    (
        "minicpm: MiniCPM-2B-sft, tied by default",
        {"rope_scaling": {"type": "yarn", "factor": 2.0}},
        "rope_type is 'yarn', but must be 'default' or 'linear' or 'dynamic'",
    ),
]


@pytest.mark.parametrize("name, change, message", WRONG)
def test_features_a_family_does_not_support_are_refused(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(AxzooError, match=message):
        _read(CASES[name].config | change)


def test_chatglm2_without_rope_ratio_is_supported_and_an_explicit_theta_wins() -> None:
    config = CASES["chatglm: chatglm3-6b-32k"].config | {"_name_or_path": "THUDM/chatglm2-6b"}
    assert _read(config | {"rope_ratio": 1}).layer.rope.theta == 10000.0
    assert _read(config | {"rope_theta": 5e5}).layer.rope.theta == 5e5


NEVER_RIGHT: list[Any] = [
    -1, 10**400, float("nan"), float("inf"), 1.5e308, "1", "x", "\n", [1], [{}], {"a": []},
]  # fmt: skip
"""Values that no key of these configs may have: refused, or without effect."""
POSSIBLE: list[Any] = [None, 0, True, 2.5, "", [], {}]
"""Values that some keys may have."""


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_any_value_is_refused_by_name_or_read_as_it_is(case: Case, tmp_path: Path) -> None:
    """Every key of every config with every value: 5,814 files."""
    path, model_type, layers = tmp_path / "config.json", case.config["model_type"], case.spec.num_hidden_layers
    for key in case.config.keys() - {"model_type"}:
        for value in NEVER_RIGHT + POSSIBLE:
            path.write_text(json.dumps(case.config | {key: value}))
            attack = f"{key}: {value!r:.30}"
            try:
                spec = read_spec(tmp_path, model_type, layers, [])
            except AxzooError as error:
                message = str(error)
                assert "\n" not in message, attack
                assert str(path) in message, attack
                assert key in message or (key.startswith("rope") and "rope" in message), attack
            else:
                assert spec == case.spec or any(value is possible for possible in POSSIBLE), attack


def test_there_are_at_least_709_configs() -> None:
    keys = sum(len(case.config.keys() - {"model_type"}) for case in CASES.values())
    assert keys * len(NEVER_RIGHT + POSSIBLE) >= 709
