"""Phi-3, Phi-3.5 and Phi-4-mini: Llama with fused qkv and gate_up projections, a sliding window and, since Phi-4,
partial rotary embedding."""

from __future__ import annotations

from axzoo.model.config_view import ConfigView
from axzoo.model.families import ConfigKeys
from axzoo.model.families._hugging_face import embed_tokens, fused, linear, llama_post, roles
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

ROPE_TYPES = ("default", "longrope")
CONFIG_KEYS = ConfigKeys(implied={"norm_type": "rms_norm"})
PARITY_TESTS = "tests/model/families/test_parity.py -k phi3"


def decoder_spec(config: ConfigView) -> DecoderSpec:
    hidden_size, vocab_size = config.size("hidden_size"), config.size("vocab_size")
    heads, kv_heads = config.heads()
    layers = config.size("num_hidden_layers")
    head_dim = config.size("head_dim", hidden_size // heads)
    positions = config.size("max_position_embeddings")
    norm = NormSpec("rms_norm", config.epsilon("rms_norm_eps"))
    return DecoderSpec(
        model_type="phi3",
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
            rope=config.rope(head_dim, positions, partial_rotary_factor=1.0, types=ROPE_TYPES),
            max_position_embeddings=positions,
            hidden_act=config.activation("hidden_act", ["silu"], "silu"),
        ),
        post=PostSpec(hidden_size, vocab_size, norm),
        sliding_windows=config.sliding_windows(layers, config.optional_size("sliding_window")),
    )


def layer_tensors(spec: DecoderSpec, layer: int) -> dict[str, TensorRef]:
    part, name = spec.layer, f"model.layers.{layer}"
    hidden, inner = part.hidden_size, part.intermediate_size
    qkv = {"q_proj": part.q_size, "k_proj": part.kv_size, "v_proj": part.kv_size}
    return {
        "input_norm.weight": TensorRef(f"{name}.input_layernorm.weight", (hidden,)),
        "mlp_norm.weight": TensorRef(f"{name}.post_attention_layernorm.weight", (hidden,)),
        **fused(f"{name}.self_attn.qkv_proj", qkv, hidden, False),
        **roles(o_proj=linear(f"{name}.self_attn.o_proj", (hidden, part.q_size), False)),
        **fused(f"{name}.mlp.gate_up_proj", {"gate_proj": inner, "up_proj": inner}, hidden, False),
        **roles(down_proj=linear(f"{name}.mlp.down_proj", (hidden, inner), False)),
    }


post_tensors = llama_post
embed_tensor = embed_tokens
