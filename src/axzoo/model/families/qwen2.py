"""Qwen1.5, Qwen2, Qwen2.5 and DeepSeek-R1-Distill-Qwen: Llama with biases on q, k and v, and sliding windows."""

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
    "windows",
]

CONFIG_KEYS = ConfigKeys()
PARITY_TESTS = "tests/model/families/test_parity.py -k qwen2"


def decoder_spec(config: ConfigView) -> DecoderSpec:
    hidden_size, vocab_size = config.size("hidden_size"), config.size("vocab_size")
    heads, kv_heads = config.heads()
    layers = config.size("num_hidden_layers")
    head_dim = config.size("head_dim", hidden_size // heads)
    positions = config.size("max_position_embeddings")
    norm = NormSpec("rms_norm", config.epsilon("rms_norm_eps"))
    return DecoderSpec(
        model_type="qwen2",
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
            qkv_bias=True,
        ),
        post=PostSpec(hidden_size, vocab_size, norm),
        sliding_windows=windows(config, layers),
    )


def windows(config: ConfigView, layers: int) -> tuple[int | None, ...]:
    """One sliding window per layer after the first `max_window_layers` layers, if `use_sliding_window` is set."""
    window, full = config.optional_size("sliding_window"), config.count("max_window_layers", layers)
    if not config.flag("use_sliding_window", False):
        config.ignore("layer_types")  # transformers 5 then lists full_attention for every layer
        return ()
    listed = config.sliding_windows(layers, window)
    if "layer_types" in config or not listed:
        return listed
    return tuple(window if layer >= full else None for layer in range(layers))


layer_tensors = llama_layer
post_tensors = llama_post
embed_tensor = embed_tokens
