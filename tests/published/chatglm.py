"""ChatGLM3 as modeling_chatglm.py of THUDM/chatglm3-6b and chatglm3-6b-32k define it.

Queries, keys and values come from one matrix, with a bias, whose rows are all query heads, then the key groups, then
the value groups. The first half of each head is rotated, in pairs of neighbours; rope_ratio multiplies the rope's
base of 10000. The MLP's first matrix holds the gate's rows, then the others'. The head is a matrix of its own, and
both vocabularies are padded ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from published.blocks import causal_attention, rms_norm, rotations

Config = Mapping[str, Any]

EMBEDDING = "transformer.embedding.word_embeddings.weight"


def config(**changes: Any) -> dict[str, Any]:
    """config.json of a small one, with the keys of chatglm3-6b; chatglm3-6b-32k adds rope_ratio."""
    published = {
        "_name_or_path": "THUDM/chatglm3-6b",
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "architectures": ["ChatGLMModel"],
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
        "bias_dropout_fusion": True,
        "eos_token_id": 2,
        "ffn_hidden_size": 50,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": 40,
        "kv_channels": 12,
        "layernorm_epsilon": 0.01,
        "model_type": "chatglm",
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "num_attention_heads": 6,
        "num_layers": 3,
        "original_rope": True,
        "pad_token_id": 0,
        "padded_vocab_size": 263,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 128,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.30.2",
        "use_cache": True,
    }
    return published | changes


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor, [out_features, in_features]; inv_freq is stored, but nothing reads it."""
    hidden, inner, vocab = config["hidden_size"], config["ffn_hidden_size"], config["padded_vocab_size"]
    queries, groups = _projected(config)
    layer = {
        "input_layernorm.weight": (hidden,),
        "self_attention.query_key_value.weight": (queries + 2 * groups, hidden),
        **({"self_attention.query_key_value.bias": (queries + 2 * groups,)} if config["add_qkv_bias"] else {}),
        "self_attention.dense.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.dense_h_to_4h.weight": (2 * inner, hidden),
        "mlp.dense_4h_to_h.weight": (hidden, inner),
    }
    indices = range(config["num_layers"])
    return {
        EMBEDDING: (vocab, hidden),
        "transformer.rotary_pos_emb.inv_freq": (config["kv_channels"] // 4,),
        **{f"transformer.encoder.layers.{i}.{name}": shape for i in indices for name, shape in layer.items()},
        "transformer.encoder.final_layernorm.weight": (hidden,),
        "transformer.output_layer.weight": (vocab, hidden),
    }


def logits(config: Config, weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """Logits [tokens, padded_vocab_size] after each of ids [tokens]."""
    epsilon = config["layernorm_epsilon"]
    rotation = rotations(config["kv_channels"] // 2, 10000.0 * config.get("rope_ratio", 1), len(ids))
    hidden = weights[EMBEDDING][ids]
    for index in range(config["num_layers"]):
        prefix = f"transformer.encoder.layers.{index}."
        layer = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        normed = rms_norm(hidden, layer["input_layernorm.weight"], epsilon)
        hidden = hidden + _attention(config, layer, normed, rotation)
        normed = rms_norm(hidden, layer["post_attention_layernorm.weight"], epsilon)
        hidden = hidden + _mlp(layer, normed)
    normed = rms_norm(hidden, weights["transformer.encoder.final_layernorm.weight"], epsilon)
    return linear(normed, weights["transformer.output_layer.weight"])


def _attention(config: Config, layer: Mapping[str, Tensor], x: Tensor, rotation: Tensor) -> Tensor:
    name = "self_attention.query_key_value"
    fused = linear(x, layer[f"{name}.weight"], layer.get(f"{name}.bias"))
    queries, groups = _projected(config)
    parts = fused.split((queries, groups, groups), dim=-1)
    query, key, value = (part.unflatten(-1, (-1, config["kv_channels"])) for part in parts)
    mixed = causal_attention(_rotate(query, rotation), _rotate(key, rotation), value)
    return linear(mixed, layer["self_attention.dense.weight"])


def _mlp(layer: Mapping[str, Tensor], x: Tensor) -> Tensor:
    gate, up = linear(x, layer["mlp.dense_h_to_4h.weight"]).chunk(2, dim=-1)
    return linear(silu(gate) * up, layer["mlp.dense_4h_to_h.weight"])


def _rotate(heads: Tensor, rotation: Tensor) -> Tensor:
    """Turns the pairs (2i, 2i + 1) in the first half of each head [tokens, heads, kv_channels]."""
    first, second = heads.chunk(2, dim=-1)
    pairs = torch.view_as_complex(first.unflatten(-1, (-1, 2)).contiguous())
    return torch.cat((torch.view_as_real(pairs * rotation[:, None]).flatten(-2), second), dim=-1)


def _projected(config: Config) -> tuple[int, int]:
    """Rows of all query heads, and of all groups of keys (or values)."""
    size = config["kv_channels"]
    return config["num_attention_heads"] * size, config["multi_query_group_num"] * size
