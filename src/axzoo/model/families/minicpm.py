"""MiniCPM: Llama with scaled embedding, scaled residual branches and scaled logits."""

from __future__ import annotations

from axzoo.model.config_view import ConfigView
from axzoo.model.families import ConfigKeys
from axzoo.model.families._hugging_face import embed_tokens, llama_layer, llama_post
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

CONFIG_KEYS = ConfigKeys(own=("dim_model_base", "scale_depth", "scale_emb"))
ROPE_TYPES = ("default", "linear", "dynamic")
PARITY_TESTS = "tests/model/families/test_published_parity.py -k minicpm"


def decoder_spec(config: ConfigView, model_type: str = "minicpm") -> DecoderSpec:
    hidden_size, vocab_size = config.size("hidden_size"), config.size("vocab_size")
    heads, kv_heads = config.heads()
    layers = config.size("num_hidden_layers")
    head_dim = hidden_size // heads
    config.choice("head_dim", [head_dim], head_dim)
    positions = config.size("max_position_embeddings")
    norm = NormSpec("rms_norm", config.epsilon("rms_norm_eps"))
    bias = config.flag("attention_bias", False)
    return DecoderSpec(
        model_type=model_type,
        num_hidden_layers=layers,
        vocab_size=vocab_size,
        tie_word_embeddings=config.flag("tie_word_embeddings", True),
        layer=LayerSpec(
            hidden_size=hidden_size,
            intermediate_size=config.size("intermediate_size"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            norm=norm,
            rope=config.rope(head_dim, positions, types=ROPE_TYPES),
            max_position_embeddings=positions,
            hidden_act=config.activation("hidden_act", ["silu"], "silu"),
            qkv_bias=bias,
            o_bias=bias,
            residual_scale=config.scale("scale_depth", 1) / layers**0.5,
        ),
        post=PostSpec(hidden_size, vocab_size, norm, logit_scale=config.scale("dim_model_base", 1) / hidden_size),
        embedding_scale=config.scale("scale_emb", 1),
    )


layer_tensors = llama_layer
post_tensors = llama_post
embed_tensor = embed_tokens
