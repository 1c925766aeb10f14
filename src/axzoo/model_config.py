"""`--model_config`: a JSON file whose keys override config.json's, or stand for it where a checkpoint has none.

It may be written for ax-llm-build, whose names are not Hugging Face's (`rope_theta_base`, and `max_position_embedings`
as it spells it), with Hugging Face's names, or with both.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from axzoo.config_view import WITHOUT_EFFECT
from axzoo.errors import AxzooError

_OLD_NAMES = {
    "max_position_embedings": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "rope_partial_factor": "partial_rotary_factor",
    "rope_theta_base": "rope_theta",
}

_OWN_NAMES: Mapping[str, Mapping[str, str]] = {
    "phi": {"rms_norm_eps": "layer_norm_eps"},
    "chatglm": {
        "intermediate_size": "ffn_hidden_size",
        "max_position_embeddings": "seq_length",
        "num_hidden_layers": "num_layers",
        "num_key_value_heads": "multi_query_group_num",
        "rms_norm_eps": "layernorm_epsilon",
        "rope_theta": "rope_ratio",
        "vocab_size": "padded_vocab_size",
    },
}
"""What a model_type's config.json calls a thing, where it is not the common name."""

_USUAL = {"norm_type": "rms_norm", "partial_rotary_factor": 1.0}
_IMPLIED: Mapping[str, Mapping[str, Any]] = {
    "phi": {"norm_type": "layer_norm"},
    "chatglm": {"norm_type": "rms_norm", "partial_rotary_factor": 0.5, "hidden_act": "silu"},
}
"""What a model_type says by itself: config.json has no key for it, and an override can only agree."""

_DROPPED = frozenset({"hidden_act_param", "model_name"})
"""What ax-llm-build writes and no model reads."""

_KNOWN = frozenset({
    "attention_bias", "dim_model_base", "head_dim", "hidden_act", "hidden_size", "intermediate_size",
    "max_position_embeddings", "max_window_layers", "mlp_bias", "model_type", "norm_type", "num_attention_heads",
    "num_hidden_layers", "num_key_value_heads", "original_max_position_embeddings", "partial_rotary_factor",
    "qk_layernorm", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta", "scale_depth", "scale_emb",
    "sliding_window", "tie_word_embeddings", "use_sliding_window", "vocab_size",
    # chatglm's own
    "add_bias_linear", "add_qkv_bias", "apply_residual_connection_post_layernorm", "kv_channels",
    "multi_query_attention", "original_rope", "post_layer_norm", "rmsnorm",
    *_OLD_NAMES, *_DROPPED, *WITHOUT_EFFECT, *(name for names in _OWN_NAMES.values() for name in names.values()),
})  # fmt: skip


def merge_model_config(config: Mapping[str, Any], override: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """config.json's values with those of `override`, read from `path`, in their place, under Hugging Face's names.

    `config` is empty when the checkpoint has no config.json. Its rope_parameters (transformers 5) become rope_theta and
    rope_scaling, so that an override of one leaves the other as it was. Raises AxzooError when the override has a key
    nobody knows, says one thing twice, contradicts its model_type, or leaves the model_type unsaid.
    """
    _check_keys(override, _KNOWN | set(config), path)
    model_type = _model_type(config, override, path)
    base = _with_flat_rope(config)
    merged = dict(base)
    given: dict[str, str] = {}  # the name config.json has for it -> the override's
    for old, value in _with_flat_rope(override).items():
        name = _OLD_NAMES.get(old, old)
        if name in _DROPPED or (name not in base and _is_implied(name, old, value, model_type, path)):
            continue
        own = _OWN_NAMES.get(model_type, {}).get(name, name)
        if own in given:
            raise AxzooError(f"{path} says the same twice, as {given[own]} and as {old}: remove one")
        given[own] = old
        merged[own] = _rope_ratio(value, old, path) if own == "rope_ratio" != name else value
    return merged | {"model_type": model_type}


def _check_keys(override: Mapping[str, Any], known: Collection[str], path: Path) -> None:
    for key in override:
        if key not in known:
            close = difflib.get_close_matches(key, sorted(known), n=1)
            mend = f"did you mean {close[0]!r}?" if close else "it is neither ax-llm-build's nor config.json's"
            raise AxzooError(f"{path}: unknown key {key!r:.80}: {mend}")


def _model_type(config: Mapping[str, Any], override: Mapping[str, Any], path: Path) -> str:
    """ax-llm-build says qwen of what config.json calls qwen2."""
    model_type = override.get("model_type", config.get("model_type"))
    if not isinstance(model_type, str):
        raise AxzooError(f"{path}: model_type is {model_type!r:.80}, and config.json has none to go by: name it here")
    return "qwen2" if "model_type" in override and model_type == "qwen" else model_type


def _with_flat_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """rope_parameters as the keys of transformers 4."""
    flat = dict(config)
    parameters = flat.get("rope_parameters")
    if isinstance(parameters, dict):
        del flat["rope_parameters"]
        scaling = dict(parameters)
        flat |= {key: scaling.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in scaling}
        flat["rope_scaling"] = None if scaling in ({}, {"rope_type": "default"}) else scaling
    return flat


def _is_implied(name: str, old: str, value: Any, model_type: str, path: Path) -> bool:
    """Whether config.json does not need to be told. Raises AxzooError when it cannot be."""
    implied = _IMPLIED.get(model_type, _USUAL)
    if name not in implied:
        return False
    if value != implied[name]:
        raise AxzooError(f"{path}: {old} is {value!r:.80}, but a {model_type} model has {implied[name]!r}")
    return True


def _rope_ratio(theta: Any, key: str, path: Path) -> float:
    """ChatGLM gives theta as a multiple of 10000."""
    if isinstance(theta, bool) or not isinstance(theta, int | float):
        raise AxzooError(f"{path}: {key} is {theta!r:.80}, but must be a number")
    return theta / 10000
