"""Phi-1, Phi-1.5 and Phi-2: LayerNorm, parallel attention and MLP, partial rotary embedding, biases everywhere."""

from __future__ import annotations

from axzoo.model.config_view import ConfigView
from axzoo.model.families import ConfigKeys
from axzoo.model.families._hugging_face import embed_tokens, linear, roles
from axzoo.model.rope import ROPE_TYPES
from axzoo.model.spec import DecoderSpec, LayerSpec, NormSpec, PostSpec, TensorRef

__all__ = [
    "CONFIG_KEYS",
    "PARITY_TESTS",
    "ROPE_TYPES",
    "decoder_spec",
    "embed_tensor",
    "layer_tensors",
    "post_tensors",
]

CONFIG_KEYS = ConfigKeys({"rms_norm_eps": "layer_norm_eps"}, {"norm_type": "layer_norm"}, ("qk_layernorm",))
PARITY_TESTS = "tests/model/families/test_parity.py -k phi"


def decoder_spec(config: ConfigView) -> DecoderSpec:
    config.choice("qk_layernorm", [False], False)
    config.choice("tie_word_embeddings", [False], False)
    hidden_size, vocab_size = config.size("hidden_size"), config.size("vocab_size")
    heads, kv_heads = config.heads()
    head_dim = config.size("head_dim", hidden_size // heads)
    positions = config.size("max_position_embeddings")
    norm = NormSpec("layer_norm", config.epsilon("layer_norm_eps"))
    return DecoderSpec(
        model_type="phi",
        num_hidden_layers=config.size("num_hidden_layers"),
        vocab_size=vocab_size,
        tie_word_embeddings=False,
        layer=LayerSpec(
            hidden_size=hidden_size,
            intermediate_size=config.size("intermediate_size"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            norm=norm,
            rope=config.rope(head_dim, positions, partial_rotary_factor=0.5),
            max_position_embeddings=positions,
            hidden_act=config.activation("hidden_act", ["gelu_new"]),
            gated=False,
            parallel=True,
            qkv_bias=True,
            o_bias=True,
            mlp_bias=True,
        ),
        post=PostSpec(hidden_size, vocab_size, norm, lm_head_bias=True),
    )


def layer_tensors(spec: DecoderSpec, layer: int) -> dict[str, TensorRef]:
    part, name = spec.layer, f"model.layers.{layer}"
    hidden, inner = part.hidden_size, part.intermediate_size
    return {
        "input_norm.weight": TensorRef(f"{name}.input_layernorm.weight", (hidden,)),
        "input_norm.bias": TensorRef(f"{name}.input_layernorm.bias", (hidden,)),
        **roles(
            q_proj=linear(f"{name}.self_attn.q_proj", (part.q_size, hidden), True),
            k_proj=linear(f"{name}.self_attn.k_proj", (part.kv_size, hidden), True),
            v_proj=linear(f"{name}.self_attn.v_proj", (part.kv_size, hidden), True),
            o_proj=linear(f"{name}.self_attn.dense", (hidden, part.q_size), True),
            up_proj=linear(f"{name}.mlp.fc1", (inner, hidden), True),
            down_proj=linear(f"{name}.mlp.fc2", (hidden, inner), True),
        ),
    }


def post_tensors(spec: DecoderSpec) -> dict[str, TensorRef]:
    hidden = spec.layer.hidden_size
    return {
        "norm.weight": TensorRef("model.final_layernorm.weight", (hidden,)),
        "norm.bias": TensorRef("model.final_layernorm.bias", (hidden,)),
        **roles(lm_head=linear("lm_head", (spec.vocab_size, hidden), True)),
    }


embed_tensor = embed_tokens
