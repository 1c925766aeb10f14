"""Llama in GGUF: how llama.cpp names the tensors, and the order it gives the rows of q and k.

llama.cpp's converter (convert_hf_to_gguf.py, LlamaModel.permute) reorders the rows within each head so that rotary
pairs are neighbours: row `2 j + i` of a head there is row `i * head_dim / 2 + j` of Hugging Face's head.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(0|[1-9][0-9]{0,4})\.([a-z_]+)\.weight")


def hugging_face_name(name: str) -> str | None:
    """Hugging Face's name of a GGUF tensor, or None for a tensor a plain llama does not have."""
    if name in _TOP:
        return _TOP[name]
    match = _LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in _LAYER:
        return None
    return f"model.layers.{match[1]}.{_LAYER[match[2]]}.weight"


def is_permuted(name: str) -> bool:
    """Whether llama.cpp reordered the rows of this tensor (Hugging Face's name)."""
    return name.endswith((".q_proj.weight", ".k_proj.weight"))


def row_order(rows: NDArray[np.int64], head_dim: int) -> NDArray[np.int64]:
    """Where rows of Hugging Face's q or k stand in the GGUF file; indices, int64 [n] -> [n]."""
    head, row = np.divmod(rows, head_dim)
    half, pair = np.divmod(row, head_dim // 2)
    order: NDArray[np.int64] = head * head_dim + 2 * pair + half
    return order
