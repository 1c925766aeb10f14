"""MiniCPM: Llama with scaled embedding, scaled residual branches and scaled logits."""

from __future__ import annotations

from axzoo.config_view import ConfigView
from axzoo.families._hugging_face import embed_tokens, llama_layer, llama_post
from axzoo.spec import DecoderSpec, LayerSpec, NormSpec, PostSpec, RopeSpec

__all__ = ["IGNORED_TENSORS", "PARITY_TESTS", "decoder_spec", "embed_tensor", "layer_tensors", "post_tensors"]

IGNORED_TENSORS = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
PARITY_TESTS = "tests/families/test_published_parity.py -k minicpm"


def decoder_spec(config: ConfigView, model_type: str = "minicpm") -> DecoderSpec:
    config.choice("pretraining_tp", [1], 1)
    hidden_size, vocab_size = config.size("hidden_size"), config.size("vocab_size")
    heads, kv_heads = config.heads()
    layers = config.size("num_hidden_layers")
    head_dim = hidden_size // heads
    positions = config.size("max_position_embeddings")
    rope = config.rope(head_dim, positions)
    norm = NormSpec("rms_norm", config.number("rms_norm_eps"))
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
            rope=rope,
            max_position_embeddings=_reach(rope, positions),
            hidden_act=config.choice("hidden_act", ["silu"], "silu"),
            qkv_bias=bias,
            o_bias=bias,
            residual_scale=config.number("scale_depth", 1) / layers**0.5,
        ),
        post=PostSpec(hidden_size, vocab_size, norm, logit_scale=config.number("dim_model_base", 1) / hidden_size),
        embedding_scale=config.number("scale_emb", 1),
    )


def _reach(rope: RopeSpec, trained: int) -> int:
    """Positions the model is good for: a dynamic rope is there to go `factor` times beyond the trained ones."""
    return int(trained * rope.scaling["factor"]) if rope.scaling["rope_type"] == "dynamic" else trained


layer_tensors = llama_layer
post_tensors = llama_post
embed_tensor = embed_tokens
