"""ChatGLM3 and ChatGLM2, except ChatGLM2-6B-32k: fused query_key_value with bias, interleaved rotary embedding of half
of each head, fused SwiGLU, its own config keys.

In ChatGLM3 and GLM-4, modeling_chatglm.py multiplies the rope base by `rope_ratio`; in ChatGLM2-6B-32k it divides the
positions by it. Both have the same model_type, so rope_ratio is accepted only if `_name_or_path` identifies the model.
"""

from __future__ import annotations

import re

from axzoo.core.errors import AxzooError
from axzoo.model.config_view import ConfigView
from axzoo.model.families import ConfigKeys
from axzoo.model.families._hugging_face import fused, linear, roles
from axzoo.model.rope import HIGHEST_THETA, make_rope
from axzoo.model.spec import DecoderSpec, LayerSpec, NormSpec, PostSpec, TensorRef

CONFIG_KEYS = ConfigKeys(
    names={
        "intermediate_size": "ffn_hidden_size",
        "max_position_embeddings": "seq_length",
        "num_hidden_layers": "num_layers",
        "num_key_value_heads": "multi_query_group_num",
        "rms_norm_eps": "layernorm_epsilon",
        "vocab_size": "padded_vocab_size",
    },
    implied={"norm_type": "rms_norm", "partial_rotary_factor": 0.5, "hidden_act": "silu"},
    own=(
        "add_bias_linear", "add_qkv_bias", "apply_residual_connection_post_layernorm", "kv_channels",
        "multi_query_attention", "original_rope", "post_layer_norm", "rmsnorm", "rope_ratio",
    ),
)  # fmt: skip
ROPE_TYPES = ("default",)
PARITY_TESTS = "tests/model/families/test_published_parity.py -k chatglm"

# Scaling the scores down and up again, dtypes of intermediate results, dropout: no effect in fp32 inference.
WITHOUT_EFFECT = (
    "apply_query_key_layer_scaling", "attention_softmax_in_fp32", "bias_dropout_fusion", "classifier_dropout",
)  # fmt: skip


def decoder_spec(config: ConfigView) -> DecoderSpec:
    config.ignore(*WITHOUT_EFFECT)
    for key, only in {
        "add_bias_linear": False,
        "apply_residual_connection_post_layernorm": False,
        "fp32_residual_connection": False,
        "multi_query_attention": True,
        "original_rope": True,
        "post_layer_norm": True,
        "pre_seq_len": 0,
        "prefix_projection": False,
        "quantization_bit": 0,
        "rmsnorm": True,
        "tie_word_embeddings": False,
    }.items():
        config.choice(key, [only], only)
    hidden_size, vocab_size = config.size("hidden_size"), config.size("padded_vocab_size")
    config.choice("vocab_size", [vocab_size], vocab_size)  # added when transformers saves the model again
    heads, head_dim = config.size("num_attention_heads"), config.size("kv_channels")
    groups = config.size("multi_query_group_num")
    if heads % groups:
        raise AxzooError(
            f"{config.path}: num_attention_heads is {heads}, but must be a multiple of multi_query_group_num, {groups}"
        )
    positions = config.size("seq_length")
    norm = NormSpec("rms_norm", config.epsilon("layernorm_epsilon"))
    return DecoderSpec(
        model_type="chatglm",
        num_hidden_layers=config.size("num_layers"),
        vocab_size=vocab_size,
        tie_word_embeddings=False,
        layer=LayerSpec(
            hidden_size=hidden_size,
            intermediate_size=config.size("ffn_hidden_size"),
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=head_dim,
            norm=norm,
            rope=make_rope(head_dim // 2, _theta(config), {"rope_type": "default"}, positions, interleaved=True),
            max_position_embeddings=positions,
            qkv_bias=config.flag("add_qkv_bias"),
        ),
        post=PostSpec(hidden_size, vocab_size, norm),
    )


def _theta(config: ConfigView) -> float:
    """The rope base: `rope_theta`, which only a --model_config has, else 10000 * rope_ratio.

    Raises AxzooError if rope_ratio may have the meaning it has in ChatGLM2-6B-32k.
    """
    ratio, name = config.scale("rope_ratio", 1), config.string("_name_or_path", "")
    if "rope_theta" in config:
        return config.number("rope_theta", highest=HIGHEST_THETA)
    if ratio != 1 and not re.search("chatglm-?3|glm-?4", name, re.IGNORECASE):
        raise AxzooError(
            f"{config.path}: rope_ratio {ratio:g} is ambiguous: it multiplies the rope base in ChatGLM3, but divides "
            f"the positions in ChatGLM2-6B-32k, which axzoo does not support, and _name_or_path {name!r:.80} does not "
            f'identify the model. If it is a ChatGLM3, pass a model_config with "rope_theta": {10000 * ratio:g}'
        )
    return 10000 * ratio


def layer_tensors(spec: DecoderSpec, layer: int) -> dict[str, TensorRef]:
    part, name = spec.layer, f"transformer.encoder.layers.{layer}"
    hidden, inner = part.hidden_size, part.intermediate_size
    qkv = {"q_proj": part.q_size, "k_proj": part.kv_size, "v_proj": part.kv_size}
    return {
        "input_norm.weight": TensorRef(f"{name}.input_layernorm.weight", (hidden,)),
        "mlp_norm.weight": TensorRef(f"{name}.post_attention_layernorm.weight", (hidden,)),
        **fused(f"{name}.self_attention.query_key_value", qkv, hidden, part.qkv_bias),
        **roles(o_proj=linear(f"{name}.self_attention.dense", (hidden, part.q_size), False)),
        **fused(f"{name}.mlp.dense_h_to_4h", {"gate_proj": inner, "up_proj": inner}, hidden, False),
        **roles(down_proj=linear(f"{name}.mlp.dense_4h_to_h", (hidden, inner), False)),
    }


def post_tensors(spec: DecoderSpec) -> dict[str, TensorRef]:
    hidden = spec.layer.hidden_size
    return {
        "norm.weight": TensorRef("transformer.encoder.final_layernorm.weight", (hidden,)),
        **roles(lm_head=linear("transformer.output_layer", (spec.vocab_size, hidden), False)),
    }


def embed_tensor(spec: DecoderSpec) -> TensorRef:
    return TensorRef("transformer.embedding.word_embeddings.weight", (spec.vocab_size, spec.layer.hidden_size))
