"""MiniCPM as modeling_minicpm.py of openbmb/MiniCPM-2B-sft-bf16 defines it: a llama with four scales (muP).

The embedding is multiplied by scale_emb, what attention and MLP add to the residual by
scale_depth / sqrt(num_hidden_layers), and the head reads the normed hidden state divided by
hidden_size / dim_model_base. The head is the embedding unless config.json says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from published.blocks import causal_attention, rms_norm, rotations

Config = Mapping[str, Any]

EMBEDDING = "model.embed_tokens.weight"


def config(**changes: Any) -> dict[str, Any]:
    """config.json of a small one, with the keys of MiniCPM-2B-sft-bf16, which leaves rope and tied head to defaults."""
    published = {
        "architectures": ["MiniCPMForCausalLM"],
        "bos_token_id": 1,
        "dim_model_base": 16,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 36,
        "initializer_range": 0.1,
        "intermediate_size": 50,
        "max_position_embeddings": 128,
        "model_type": "minicpm",
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
        "num_key_value_heads": 6,
        "rms_norm_eps": 0.01,
        "scale_depth": 1.4,
        "scale_emb": 12,
        "torch_dtype": "float32",
        "transformers_version": "4.36.0",
        "use_cache": True,
        "vocab_size": 263,
    }
    return published | changes


def vision_config(**changes: Any) -> dict[str, Any]:
    """config.json of a small one with the keys of MiniCPM-V-2, whose tensors are named llm.* beside the vision's."""
    published = {
        "_name_or_path": "openbmb/MiniCPM-V-2",
        "architectures": ["MiniCPMV"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {"AutoModel": "modeling_minicpmv.MiniCPMV"},
        "drop_vision_last_layer": True,
        "image_size": 448,
        "max_slice_nums": 9,
        "mm_use_im_start_end": True,
        "model_type": "minicpmv",
        "patch_size": 14,
        "pretraining_tp": 1,
        "query_num": 64,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "scale_resolution": 448,
        "slice_mode": True,
        "tie_word_embeddings": False,
        "vision_encoder": "vit_so400m_patch14_siglip_384.webli",
    }
    return config(**published | changes)


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor, [out_features, in_features]."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * _head_size(config)
    keys = config.get("num_key_value_heads", config["num_attention_heads"]) * _head_size(config)
    layer = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config.get("attention_bias", False):
        layer |= {f"self_attn.{name}_proj.bias": layer[f"self_attn.{name}_proj.weight"][:1] for name in "qkvo"}
    indices = range(config["num_hidden_layers"])
    layers = {f"model.layers.{i}.{name}": shape for i in indices for name, shape in layer.items()}
    head = {} if _tied(config) else {"lm_head.weight": (vocab, hidden)}
    return {EMBEDDING: (vocab, hidden), **layers, "model.norm.weight": (hidden,), **head}


def logits(
    config: Config, weights: Mapping[str, Tensor], ids: Tensor, images: Mapping[int, Tensor] | None = None
) -> Tensor:
    """Logits [tokens, vocab_size] after each of ids [tokens], as one pass over the whole sequence gives them.

    `images` are rows [n, hidden_size] by the position of the first token that they replace; they are not scaled.
    """
    rotation = _rotations(config, len(ids))
    hidden = weights[EMBEDDING][ids] * config.get("scale_emb", 1)
    for start, rows in (images or {}).items():
        hidden[start : start + len(rows)] = rows
    share = config.get("scale_depth", 1) / config["num_hidden_layers"] ** 0.5
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}."
        layer = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        normed = rms_norm(hidden, layer["input_layernorm.weight"], config["rms_norm_eps"])
        hidden = hidden + share * _attention(config, layer, normed, rotation)
        normed = rms_norm(hidden, layer["post_attention_layernorm.weight"], config["rms_norm_eps"])
        hidden = hidden + share * _mlp(layer, normed)
    normed = rms_norm(hidden, weights["model.norm.weight"], config["rms_norm_eps"])
    head = weights[EMBEDDING if _tied(config) else "lm_head.weight"]
    return linear(normed / (config["hidden_size"] / config.get("dim_model_base", 1)), head)


def _attention(config: Config, layer: Mapping[str, Tensor], x: Tensor, rotation: Tensor) -> Tensor:
    def project(name: str, rows: Tensor) -> Tensor:
        return linear(rows, layer[f"self_attn.{name}_proj.weight"], layer.get(f"self_attn.{name}_proj.bias"))

    query, key, value = (project(name, x).unflatten(-1, (-1, _head_size(config))) for name in "qkv")
    return project("o", causal_attention(_rotate(query, rotation), _rotate(key, rotation), value))


def _mlp(layer: Mapping[str, Tensor], x: Tensor) -> Tensor:
    gate, up = linear(x, layer["mlp.gate_proj.weight"]), linear(x, layer["mlp.up_proj.weight"])
    return linear(silu(gate) * up, layer["mlp.down_proj.weight"])


def _rotate(heads: Tensor, rotation: Tensor) -> Tensor:
    """Turns the pairs (i, i + half) of each head [tokens, heads, head_size]."""
    turned = torch.complex(*heads.chunk(2, dim=-1)) * rotation[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)


def _rotations(config: Config, tokens: int) -> Tensor:
    """Linear scaling draws the tokens together; dynamic NTK scaling raises the base of a sequence that is longer than
    those the model was trained on."""
    base, size, trained = config.get("rope_theta", 10000.0), _head_size(config), config["max_position_embeddings"]
    match config.get("rope_scaling"):
        case {"type": "linear", "factor": factor}:
            return rotations(size, base, tokens, stretch=factor)
        case {"type": "dynamic", "factor": factor} if tokens > trained:
            return rotations(size, base * (factor * tokens / trained - factor + 1) ** (size / (size - 2)), tokens)
    return rotations(size, base, tokens)


def _tied(config: Config) -> bool:
    return bool(config.get("tie_word_embeddings", True))


def _head_size(config: Config) -> int:
    return int(config["hidden_size"]) // int(config["num_attention_heads"])
