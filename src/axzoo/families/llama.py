"""Llama: RMSNorm, rotary grouped-query attention, SwiGLU. Also TinyLlama, SmolLM, OpenBuddy and many fine-tunes."""

from __future__ import annotations

from axzoo.families import TensorRef
from axzoo.families.config_view import ConfigView
from axzoo.rope import make_rope
from axzoo.spec import DecoderSpec, LayerSpec, PostSpec

IGNORED_TENSORS = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"


def decoder_spec(config: ConfigView) -> DecoderSpec:
    config.choice("pretraining_tp", [1], 1)
    config.choice("rope_interleaved", [False], False)
    hidden_size = config.size("hidden_size")
    heads, kv_heads = config.heads()
    head_dim = config.size("head_dim", hidden_size // heads)
    theta, scaling = config.rope()
    vocab_size = config.size("vocab_size")
    eps = config.number("rms_norm_eps")
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
            rms_norm_eps=eps,
            hidden_act=config.choice("hidden_act", ["silu"], "silu"),
            attention_bias=config.flag("attention_bias", False),
            mlp_bias=config.flag("mlp_bias", False),
            rope=make_rope(head_dim, theta, scaling),
            max_position_embeddings=config.size("max_position_embeddings"),
        ),
        post=PostSpec(hidden_size=hidden_size, vocab_size=vocab_size, rms_norm_eps=eps),
    )


def layer_tensors(spec: DecoderSpec, layer: int) -> dict[str, TensorRef]:
    part, prefix = spec.layer, f"model.layers.{layer}"
    hidden, q, kv, inner = part.hidden_size, part.q_size, part.kv_size, part.intermediate_size
    attention = {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q)}
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    tensors = {
        "input_norm.weight": TensorRef(f"{prefix}.input_layernorm.weight", (hidden,)),
        "mlp_norm.weight": TensorRef(f"{prefix}.post_attention_layernorm.weight", (hidden,)),
    }
    for block, shapes, bias in [("self_attn", attention, part.attention_bias), ("mlp", mlp, part.mlp_bias)]:
        for role, shape in shapes.items():
            tensors[f"{role}.weight"] = TensorRef(f"{prefix}.{block}.{role}.weight", shape)
            if bias:
                tensors[f"{role}.bias"] = TensorRef(f"{prefix}.{block}.{role}.bias", shape[:1])
    return tensors


def post_tensors(spec: DecoderSpec) -> dict[str, TensorRef]:
    head = embed_tensor(spec).name if spec.tie_word_embeddings else "lm_head.weight"
    return {
        "norm.weight": TensorRef("model.norm.weight", (spec.layer.hidden_size,)),
        "lm_head.weight": TensorRef(head, (spec.vocab_size, spec.layer.hidden_size)),
    }


def embed_tensor(spec: DecoderSpec) -> TensorRef:
    return TensorRef("model.embed_tokens.weight", (spec.vocab_size, spec.layer.hidden_size))
