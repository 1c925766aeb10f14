"""The keys of config.json that do not affect what a decoder computes.

A key is here only if transformers gives the same logits with and without it, for every family or for the values listed.
Everything else that no family reads is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WITHOUT_EFFECT = frozenset({
    # the software that wrote or runs the model
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash",
    "_flash_attn_2_enabled", "_name_or_path", "_pre_quantization_dtype", "architectures", "attn_implementation",
    "auto_map", "cache_implementation", "chunk_size_feed_forward", "dtype", "finetuning_task", "gradient_checkpointing",
    "id2label", "is_decoder", "is_llama_config", "label2id", "model_type", "num_labels", "output_attentions",
    "output_hidden_states", "output_past", "pretraining_tp", "problem_type", "quantization_config", "return_dict",
    "task_specific_params", "tf_legacy_loss", "torch_dtype", "torchscript", "transformers.js_config",
    "transformers_version", "unsloth_fixed", "unsloth_version", "use_bfloat16", "use_cache", "use_flash_attention",
    "use_flash_attention_2", "use_flash_attn", "xla_device",
    # training
    "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "classifier_dropout", "embd_pdrop",
    "hidden_dropout", "hidden_dropout_prob", "initializer_factor", "initializer_range", "layerdrop",
    "neftune_noise_alpha", "resid_pdrop",
    # tokens, and the longest text that tools accept
    "bos_token", "bos_token_id", "decoder_start_token_id", "eos_token", "eos_token_id", "max_seq_len",
    "max_sequence_length", "model_max_length", "pad_token", "pad_token_id", "prefix", "sep_token_id", "seq_length",
    "tokenizer_class", "unk_token", "unk_token_id",
    # defaults of generate(), which transformers before version 5 wrote into config.json
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "length_penalty", "max_length", "max_new_tokens", "min_length", "no_repeat_ngram_size", "num_beam_groups",
    "num_beams", "num_return_sequences", "output_scores", "remove_invalid_values", "repetition_penalty",
    "return_dict_in_generate", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
    # biases are tensors, and every tensor is accounted for
    "attention_bias", "mlp_bias",
    # only for models with sliding windows, whose families read it
    "max_window_layers",
    # only for images; all sections of a text have the same positions
    "use_mrope",
})  # fmt: skip
"""Keys that have no effect with any value, unless the family reads them."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "alibi": (False,),
    "full_attn_mod": (1,),
    "interpolate_factor": (1,),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "lm_head_bias": (False,),
    "pruned_heads": ({}, []),
    "qk_layernorm": (False,),
    "rope_interleaved": (False,),
    "tie_encoder_decoder": (False,),
    "use_qk_norm": (False,),
    "use_sliding_window": (False,),
}
"""Keys that have no effect with these values, unless the family reads them."""

_CAUSES: Mapping[str, str] = {
    "num_experts": "the model is a mixture of experts, which axzoo does not support",
    "num_local_experts": "the model is a mixture of experts, which axzoo does not support",
    "quantization": "the weights are quantized by MLX, which axzoo does not read: use the unquantized checkpoint",
    "sliding_window": "this model_type has no sliding window in transformers, but the weights may need one",
}
"""Why a key is refused, for keys that people meet."""


def has_no_effect(key: str, config: Mapping[str, Any]) -> bool:
    """Whether `config[key]`, which the family does not read, does not change what the model computes."""
    value = config[key]
    if value is None or key in WITHOUT_EFFECT:
        return True
    if key == "sliding_window":
        return config.get("use_sliding_window") is False
    if key == "layer_types":
        return isinstance(value, list) and all(kind == "full_attention" for kind in value)
    return any(type(value) is type(neutral) and value == neutral for neutral in _NEUTRAL.get(key, ()))


def causes(keys: list[str]) -> str:
    """What is known about refused keys, as text that ends with a space; empty if there is nothing."""
    known = [f"{key}: {_CAUSES[key]}" for key in keys if key in _CAUSES]
    return f"({'; '.join(known)}) " if known else ""
