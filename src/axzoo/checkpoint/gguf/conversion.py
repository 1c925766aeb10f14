"""Converts a GGUF file back to a Hugging Face checkpoint: config.json, tokenizer, fp32 tensors."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from axzoo.checkpoint.gguf.reader import GgufCheckpoint
from axzoo.checkpoint.gguf.vocabulary import build_tokenizer, has_tokenizer, special_tokens_map, tokenizer_config
from axzoo.checkpoint.writing import tensor_bytes, write_safetensors
from axzoo.core.errors import AxzooError
from axzoo.core.files import megabytes, require_space, write_json, write_text
from axzoo.model.config_view import HIGHEST_EPSILON
from axzoo.model.rope import HIGHEST_NUMBER, HIGHEST_THETA, LOWEST_NUMBER

logger = logging.getLogger(__name__)


_KNOWN = frozenset({
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.layer_norm_rms_epsilon",
    "attention.value_length", "block_count", "context_length", "embedding_length", "feed_forward_length",
    "rope.dimension_count", "rope.freq_base", "rope.scaling.factor", "rope.scaling.finetuned",
    "rope.scaling.original_context_length", "rope.scaling.type", "tensor_data_layout", "vocab_size",
})  # fmt: skip
_ONLY = {
    "llama": {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "mlp_bias": False},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False},
}
"""Keys of config.json that only one architecture has."""
_REQUIRED: Any = object()


def model_config(gguf: GgufCheckpoint) -> dict[str, Any]:
    """The checkpoint's config.json.

    Raises AxzooError for a key of the architecture that is missing, has the wrong type, or is unknown and may change
    the numbers.
    """
    kind = gguf.architecture
    unknown = [key for key in gguf.metadata if key.startswith(f"{kind}.") and key[len(kind) + 1 :] not in _KNOWN]
    if unknown:
        found = ", ".join(sorted(unknown))
        raise AxzooError(f"{gguf.path} cannot be converted: it sets {found}, which axzoo does not know")
    hidden, heads = _integer(gguf, "embedding_length"), _integer(gguf, "attention.head_count")
    head_dim = _integer(gguf, "attention.key_length", hidden // heads)
    for key in ("rope.dimension_count", "attention.value_length"):
        if _integer(gguf, key, head_dim) != head_dim:
            raise AxzooError(f"{gguf.path} cannot be converted: {kind}.{key} must equal the head dimension, {head_dim}")
    if kind != "llama" and head_dim != hidden // heads:
        raise AxzooError(f"{gguf.path} cannot be converted: a {kind} has heads of {hidden // heads}, not {head_dim}")
    embedding = gguf.tensors.get("model.embed_tokens.weight")
    if embedding is None or _integer(gguf, "vocab_size", embedding.shape[0]) != embedding.shape[0]:
        raise AxzooError(f"{gguf.path} has no token embedding with {kind}.vocab_size rows: the file is damaged")
    return {
        **_ONLY[kind],
        **({"head_dim": head_dim} if kind == "llama" else {}),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": _integer(gguf, "feed_forward_length"),
        "max_position_embeddings": _integer(gguf, "context_length"),
        "model_type": kind,
        "num_attention_heads": heads,
        "num_hidden_layers": _integer(gguf, "block_count"),
        "num_key_value_heads": _integer(gguf, "attention.head_count_kv", heads),
        "rms_norm_eps": _decimal(gguf, "attention.layer_norm_rms_epsilon", HIGHEST_EPSILON),
        "rope_scaling": _rope_scaling(gguf),
        "rope_theta": _decimal(gguf, "rope.freq_base", HIGHEST_THETA, 10000.0),
        "tie_word_embeddings": "lm_head.weight" not in gguf.tensors,
        "torch_dtype": "float32",
        "vocab_size": embedding.shape[0],
        **token_ids(gguf),
    }


def _rope_scaling(gguf: GgufCheckpoint) -> dict[str, Any] | None:
    """rope_scaling of config.json. Raises AxzooError for a type that is not none or linear.

    A factor for each frequency is written as longrope with the same factors for every length, and without its scaling
    of attention: this is what llama.cpp computes, whatever rule the factors come from.
    """
    kind, factors = gguf.get("rope.scaling.type", "none"), gguf.rope_factors
    if kind not in ("none", "linear") or (kind == "linear" and factors is not None):
        raise AxzooError(
            f"{gguf.path} cannot be converted: {gguf.architecture}.rope.scaling.type is {kind!r:.80}, but only none "
            f"and linear are converted"
        )
    if kind == "linear":
        return {"rope_type": "linear", "factor": _decimal(gguf, "rope.scaling.factor", HIGHEST_NUMBER)}
    if factors is None:
        return None
    length = _integer(gguf, "context_length")
    same = {"short_factor": list(factors), "long_factor": list(factors)}
    return {
        "rope_type": "longrope",
        **same,
        "attention_factor": 1.0,
        "factor": 1.0,
        "original_max_position_embeddings": length,
    }


def token_ids(gguf: GgufCheckpoint) -> dict[str, Any]:
    """generation_config.json: bos_token_id, eos_token_id and pad_token_id, where the file has them.

    The end of a turn and of a message end an answer too: they make eos_token_id a list.
    """
    keys = {"bos_token_id": "bos", "pad_token_id": "padding"}
    stored = {ours: gguf.metadata.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in keys.items()}
    ends = [gguf.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    known = list(dict.fromkeys(index for index in ends if isinstance(index, int)))
    eos = {"eos_token_id": known[0] if len(known) == 1 else known} if known else {}
    return {key: value for key, value in stored.items() if isinstance(value, int)} | eos


def _integer(gguf: GgufCheckpoint, key: str, default: Any = _REQUIRED) -> int:
    value = gguf.get(key, default)
    if type(value) is not int or not 0 < value < 1 << 31:
        name = f"{gguf.architecture}.{key}"
        raise AxzooError(f"{gguf.path}: {name} is {_describe(value)}, but must be a positive integer")
    return value


def _decimal(gguf: GgufCheckpoint, key: str, highest: float, default: Any = _REQUIRED) -> float:
    """A float32 as the shortest decimal that rounds to it: 1e-05, not 9.999999747e-06.

    The file may have it as float64, which can be outside the range of float32.
    """
    value, name = gguf.get(key, default), f"{gguf.architecture}.{key}"
    if type(value) is not float or not 0 < value < float("inf"):
        raise AxzooError(f"{gguf.path}: {name} is {_describe(value)}, but must be a positive number")
    if not LOWEST_NUMBER <= value <= highest:
        raise AxzooError(f"{gguf.path}: {name} is {value}, but must be from {LOWEST_NUMBER:g} to {highest:g}")
    return float(str(np.float32(value)))


def _describe(value: Any) -> str:
    return "missing" if value is _REQUIRED else repr(value)[:80]


FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""The files that `convert` can write."""


def convert(path: Path, output: Path) -> list[str]:
    """Converts the GGUF file at `path` into the existing folder `output`, and returns the names of the files there.

    Equal files give equal bytes. A file without a tokenizer becomes a checkpoint without one. Raises AxzooError when
    the file is damaged, or its architecture or tokenizer is not supported.
    """
    gguf = GgufCheckpoint(path)
    config, tokenizer = model_config(gguf), build_tokenizer(gguf) if has_tokenizer(gguf) else None
    if tokenizer is not None and tokenizer.get_vocab_size() > config["vocab_size"]:
        raise AxzooError(
            f"{path} has more tokens than the {config['vocab_size']} rows of its embedding: the file is damaged"
        )
    small: dict[str, Any] = {"config.json": config, "generation_config.json": token_ids(gguf)}
    if tokenizer is not None:
        small["special_tokens_map.json"] = special_tokens_map(gguf)
        small["tokenizer_config.json"] = tokenizer_config(gguf, config["max_position_embeddings"])
    size = sum(tensor_bytes(gguf, name) for name in gguf.tensors)
    require_space(output, size)
    logger.info(f"converting {len(gguf.tensors)} tensors to {megabytes(size)} of fp32")
    write_safetensors(output / "model.safetensors", gguf)
    if tokenizer is not None:
        write_text(output / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    for name, value in small.items():
        write_json(output / name, value)
    written = sorted(["model.safetensors", *(["tokenizer.json"] if tokenizer is not None else []), *small])
    for name in set(FILES).difference(written):  # of an earlier fetch
        (output / name).unlink(missing_ok=True)
    return written
