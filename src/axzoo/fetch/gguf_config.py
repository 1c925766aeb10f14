"""config.json and generation_config.json from a llama GGUF's metadata, in the keys of 2024's hub checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np

from axzoo.checkpoint.gguf import GgufCheckpoint
from axzoo.errors import AxzooError

_KNOWN = frozenset({
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.layer_norm_rms_epsilon",
    "attention.value_length", "block_count", "context_length", "embedding_length", "feed_forward_length",
    "rope.dimension_count", "rope.freq_base", "vocab_size",
})  # fmt: skip
_REQUIRED: Any = object()


def model_config(gguf: GgufCheckpoint) -> dict[str, Any]:
    """The checkpoint's config.json.

    Raises AxzooError for a key of `llama.` that is missing, of the wrong type, or unknown: it may change the numbers.
    """
    unknown = sorted(key for key in gguf.metadata if key.startswith("llama.") and key[6:] not in _KNOWN)
    if unknown:
        raise AxzooError(f"{gguf.path} sets {', '.join(unknown)}, which axzoo does not know: it cannot be converted")
    hidden, heads = _integer(gguf, "embedding_length"), _integer(gguf, "attention.head_count")
    head_dim = _integer(gguf, "attention.key_length", hidden // heads)
    for key in ("rope.dimension_count", "attention.value_length"):
        if _integer(gguf, key, head_dim) != head_dim:
            raise AxzooError(f"{gguf.path}: llama.{key} must be the head's {head_dim} values to be converted")
    embedding = gguf.tensors.get("model.embed_tokens.weight")
    if embedding is None or _integer(gguf, "vocab_size", embedding.shape[0]) != embedding.shape[0]:
        raise AxzooError(f"{gguf.path} has no token embedding of llama.vocab_size rows: fetch it again")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": _integer(gguf, "feed_forward_length"),
        "max_position_embeddings": _integer(gguf, "context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": _integer(gguf, "block_count"),
        "num_key_value_heads": _integer(gguf, "attention.head_count_kv", heads),
        "rms_norm_eps": _decimal(gguf, "attention.layer_norm_rms_epsilon"),
        "rope_scaling": None,
        "rope_theta": _decimal(gguf, "rope.freq_base", 10000.0),
        "tie_word_embeddings": "lm_head.weight" not in gguf.tensors,
        "torch_dtype": "float32",
        "vocab_size": embedding.shape[0],
        **token_ids(gguf),
    }


def token_ids(gguf: GgufCheckpoint) -> dict[str, int]:
    """bos_token_id, eos_token_id and pad_token_id as far as the file gives them: generation_config.json."""
    keys = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    stored = {ours: gguf.metadata.get(f"tokenizer.ggml.{theirs}") for ours, theirs in keys.items()}
    return {key: value for key, value in stored.items() if isinstance(value, int)}


def _integer(gguf: GgufCheckpoint, key: str, default: Any = _REQUIRED) -> int:
    value = gguf.metadata.get(f"llama.{key}", default)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise AxzooError(f"{gguf.path}: llama.{key} is {_shown(value)}, but must be a positive integer")
    return value


def _decimal(gguf: GgufCheckpoint, key: str, default: Any = _REQUIRED) -> float:
    """A float32 as the shortest decimal that means it: 1e-05, which is stored as 9.999999747e-06."""
    value = gguf.metadata.get(f"llama.{key}", default)
    if type(value) is not float or not 0 < value < float("inf"):
        raise AxzooError(f"{gguf.path}: llama.{key} is {_shown(value)}, but must be a positive number")
    return float(str(np.float32(value)))


def _shown(value: Any) -> str:
    return "missing" if value is _REQUIRED else repr(value)[:80]
