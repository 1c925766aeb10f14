"""`--model_config`: a JSON file whose keys override config.json's, or stand for it where a checkpoint has none.

It may be written for ax-llm-build, whose names are not Hugging Face's (`rope_theta_base`, and `max_position_embedings`
as it spells it), with Hugging Face's names, or with both. A family's own names are in its file, CONFIG_KEYS.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from axzoo.config_view import WITHOUT_EFFECT
from axzoo.errors import AxzooError
from axzoo.families import ConfigKeys, load_family, supported_model_types

_OLD_NAMES = {
    "max_position_embedings": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "rope_partial_factor": "partial_rotary_factor",
    "rope_theta_base": "rope_theta",
}

_DROPPED = frozenset({"hidden_act_param", "model_name"})
"""What ax-llm-build writes and no model computes with: a name to show, and the slope of a leaky ReLU, which no family's
activation has."""

_COMMON = frozenset({
    "attention_bias", "head_dim", "hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings",
    "max_window_layers", "mlp_bias", "model_type", "norm_type", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "original_max_position_embeddings", "partial_rotary_factor", "rms_norm_eps",
    "rope_parameters", "rope_scaling", "rope_theta", "sliding_window", "tie_word_embeddings", "use_sliding_window",
    "vocab_size", *_OLD_NAMES, *_DROPPED, *WITHOUT_EFFECT,
})  # fmt: skip


def merge_model_config(config: Mapping[str, Any], override: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """config.json's values with those of `override`, read from `path`, in their place, under Hugging Face's names.

    `config` is empty when the checkpoint has no config.json. Its rope_parameters (transformers 5) become rope_theta and
    rope_scaling, so that an override of one leaves the other as it was. Raises AxzooError when the override has a key
    nobody knows, says one thing twice, contradicts its model_type, or leaves the model_type unsaid.
    """
    model_type = _model_type(config, override, path)
    keys = load_family(model_type).CONFIG_KEYS if model_type in supported_model_types() else ConfigKeys()
    _check_keys(override, {*_COMMON, *keys.names.values(), *keys.own, *config}, path)
    base = _with_flat_rope(config)
    merged = dict(base)
    given: dict[str, str] = {}  # the name config.json has for it -> the override's
    for old, value in _with_flat_rope(override).items():
        name = _OLD_NAMES.get(old, old)
        if name in _DROPPED:
            continue
        if name in keys.implied and name not in base:
            if value != keys.implied[name]:
                raise AxzooError(f"{path}: {old} is {value!r:.80}, but a {model_type} model has {keys.implied[name]!r}")
            continue
        own = keys.names.get(name, name)
        if own in given:
            raise AxzooError(f"{path} says the same twice, as {given[own]} and as {old}: remove one")
        given[own] = old
        merged[own] = value
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
