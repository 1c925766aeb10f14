"""A tiny llama with a tiny tokenizer, as a transformers model and as the GGUF file llama.cpp would make of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "the cat sat on the mat",
    "numbers 1234567890 and 2024",
    "it's the theory that they're there",
    "你好 世界 naïve",
]


@dataclass(frozen=True)
class Tiny:
    """`model` is a transformers LlamaForCausalLM, `tokenizer` a byte-level BPE; `write` stores both as GGUF."""

    model: Any
    tokenizer: Tokenizer

    def write(
        self, path: Path, changes: dict[str, Any] | None = None, extra: dict[str, np.ndarray] | None = None
    ) -> Path:
        config = self.model.config
        architecture = (changes or {}).get("general.architecture", "llama")
        metadata = {
            "llama.block_count": config.num_hidden_layers,
            "llama.context_length": config.max_position_embeddings,
            "llama.embedding_length": config.hidden_size,
            "llama.feed_forward_length": config.intermediate_size,
            "llama.attention.head_count": config.num_attention_heads,
            "llama.attention.head_count_kv": config.num_key_value_heads,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.freq_base": 5000.0,
            "llama.rope.dimension_count": config.hidden_size // config.num_attention_heads,
            "llama.vocab_size": config.vocab_size,
            **_tokenizer_metadata(self.tokenizer),
        } | (changes or {})
        metadata.pop("general.architecture", None)
        writer = gguf.GGUFWriter(path, architecture)
        for key, value in metadata.items():
            renamed = f"{architecture}.{key.removeprefix('llama.')}" if architecture == "qwen2" else key
            _add(writer, renamed if key.startswith("llama.") else key, value)
        for name, values in (_tensors(self.model) | (extra or {})).items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def make_tiny(tied: bool) -> Tiny:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=tokenizer.get_vocab_size() + 3,  # padded, as embeddings often are
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    return Tiny(LlamaForCausalLM(config).float().eval(), tokenizer)


def train_tokenizer() -> Tokenizer:
    """Trained without splitting digits: it has merges of digits, which only the pre-tokenizer prevents."""
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    assert "024" in tokenizer.get_vocab() or "Ġ2024" in tokenizer.get_vocab()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    return tokenizer


def _tokenizer_metadata(tokenizer: Tokenizer) -> dict[str, Any]:
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [token for token, _ in vocabulary],
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token, _ in vocabulary],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, np.float64):
        writer.add_float64(key, float(value))
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _tensors(model: Any) -> dict[str, np.ndarray]:
    """llama.cpp's names from the package's table, and llama.cpp's permutation of q and k."""
    config, names = model.config, gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    stored = {}
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = parameter.numpy()
        if config.model_type == "llama" and name.endswith("q_proj.weight"):
            values = _permute(values, config.num_attention_heads)
        if config.model_type == "llama" and name.endswith("k_proj.weight"):
            values = _permute(values, config.num_key_value_heads)
        stem, _, kind = name.rpartition(".")
        stored[f"{names.get_name(stem)}.{kind}"] = np.ascontiguousarray(values)
    return stored


def _permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )
