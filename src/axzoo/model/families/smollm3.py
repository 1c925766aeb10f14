"""SmolLM3: Llama without rotary embedding in every fourth layer, optional biases and sliding windows."""

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

CONFIG_KEYS = ConfigKeys(own=("layer_types", "no_rope_layer_interval", "no_rope_layers"))
PARITY_TESTS = "tests/model/families/test_parity.py -k smollm3"


def decoder_spec(config: ConfigView) -> DecoderSpec:
    hidden_size, vocab_size = config.size("hidden_size"), config.size("vocab_size")
    heads, kv_heads = config.heads()
    layers = config.size("num_hidden_layers")
    head_dim = config.size("head_dim", hidden_size // heads)
    positions = config.size("max_position_embeddings")
    norm = NormSpec("rms_norm", config.epsilon("rms_norm_eps"))
    bias = config.flag("attention_bias", False)
    rotary = _rotary_layers(config, layers)
    return DecoderSpec(
        model_type="smollm3",
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
            rope=config.rope(head_dim, positions, theta=2000000.0),
            max_position_embeddings=positions,
            hidden_act=config.activation("hidden_act", ["silu"], "silu"),
            qkv_bias=bias,
            o_bias=bias,
            mlp_bias=config.flag("mlp_bias", False),
        ),
        post=PostSpec(hidden_size, vocab_size, norm),
        sliding_windows=_windows(config, layers, rotary),
        rotary_layers=rotary,
    )


def _rotary_layers(config: ConfigView, layers: int) -> tuple[bool, ...]:
    """Whether each layer rotates: from no_rope_layers, whose entry is 1 if it does, else by no_rope_layer_interval."""
    interval = config.size("no_rope_layer_interval", 4)
    return config.layer_flags("no_rope_layers", layers, [(layer + 1) % interval != 0 for layer in range(layers)])


def _windows(config: ConfigView, layers: int, rotary: tuple[bool, ...]) -> tuple[int | None, ...]:
    """One sliding window per layer: from layer_types, else in the layers without rotation if use_sliding_window."""
    window, used = config.optional_size("sliding_window"), config.flag("use_sliding_window", False)
    if "layer_types" in config:
        windows = config.sliding_windows(layers, window)
        if windows:  # without the flag, transformers' attention implementations differ
            config.choice("use_sliding_window", [True], False)
        return windows
    if not used or window is None or all(rotary):
        return ()
    return tuple(None if rotates else window for rotates in rotary)


layer_tensors = llama_layer
post_tensors = llama_post
embed_tensor = embed_tokens
