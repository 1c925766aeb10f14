"""Qwen3: Qwen2 without biases, with an RMS norm of every query and key head and an explicit head_dim."""

from __future__ import annotations

from axzoo.model.config_view import ConfigView
from axzoo.model.families import ConfigKeys
from axzoo.model.families._hugging_face import embed_tokens, llama_layer, llama_post
from axzoo.model.families.qwen2 import windows
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

CONFIG_KEYS = ConfigKeys()
PARITY_TESTS = "tests/model/families/test_parity.py -k qwen3"


def decoder_spec(config: ConfigView) -> DecoderSpec:
    hidden_size, vocab_size = config.size("hidden_size"), config.size("vocab_size")
    heads, kv_heads = config.heads()
    layers = config.size("num_hidden_layers")
    head_dim = config.size("head_dim", 128)
    positions = config.size("max_position_embeddings")
    norm = NormSpec("rms_norm", config.epsilon("rms_norm_eps"))
    bias = config.flag("attention_bias", False)
    return DecoderSpec(
        model_type="qwen3",
        num_hidden_layers=layers,
        vocab_size=vocab_size,
        tie_word_embeddings=config.flag("tie_word_embeddings", False),
        layer=LayerSpec(
            hidden_size=hidden_size,
            intermediate_size=config.size("intermediate_size"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            norm=norm,
            rope=config.rope(head_dim, positions),
            max_position_embeddings=positions,
            hidden_act=config.activation("hidden_act", ["silu"], "silu"),
            qk_norm=True,
            qkv_bias=bias,
            o_bias=bias,
        ),
        post=PostSpec(hidden_size, vocab_size, norm),
        sliding_windows=windows(config, layers),
    )


def layer_tensors(spec: DecoderSpec, layer: int) -> dict[str, TensorRef]:
    attention, shape = f"model.layers.{layer}.self_attn", (spec.layer.head_dim,)
    return {
        **llama_layer(spec, layer),
        "q_norm.weight": TensorRef(f"{attention}.q_norm.weight", shape),
        "k_norm.weight": TensorRef(f"{attention}.k_norm.weight", shape),
    }


post_tensors = llama_post
embed_tensor = embed_tokens
