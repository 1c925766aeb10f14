"""Llama, TinyLlama, SmolLM, OpenBuddy and many fine-tunes: RMSNorm, grouped-query attention, SwiGLU, optional biases,
optional explicit head_dim, tied or untied embeddings."""

from __future__ import annotations

from axzoo.model.config_view import ConfigView
from axzoo.model.families import ConfigKeys
from axzoo.model.families._hugging_face import embed_tokens, llama_layer, llama_post
from axzoo.model.rope import ROPE_TYPES
from axzoo.model.spec import DecoderSpec, LayerSpec, NormSpec, PostSpec

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
PARITY_TESTS = "tests/model/families/test_parity.py -k llama"


def decoder_spec(config: ConfigView) -> DecoderSpec:
    hidden_size, vocab_size = config.size("hidden_size"), config.size("vocab_size")
    heads, kv_heads = config.heads()
    head_dim = config.size("head_dim", hidden_size // heads)
    positions = config.size("max_position_embeddings")
    norm = NormSpec("rms_norm", config.epsilon("rms_norm_eps"))
    bias = config.flag("attention_bias", False)
    return DecoderSpec(
        model_type="llama",
        num_hidden_layers=config.size("num_hidden_layers"),
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
            qkv_bias=bias,
            o_bias=bias,
            mlp_bias=config.flag("mlp_bias", False),
        ),
        post=PostSpec(hidden_size, vocab_size, norm),
    )


layer_tensors = llama_layer
post_tensors = llama_post
embed_tensor = embed_tokens
