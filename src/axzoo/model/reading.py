"""Reading a model's spec from config.json and `--model_config`.

`--model_config` is a JSON file that overrides keys of config.json, or replaces a missing config.json. It can use the
key names of ax-llm-build (`rope_theta_base`, `max_position_embedings` with its spelling), those of Hugging Face, or
both. CONFIG_KEYS in each family file lists the family's own key names.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json
from axzoo.model.config_keys import WITHOUT_EFFECT
from axzoo.model.config_view import ConfigView
from axzoo.model.families import ConfigKeys, load_family, supported_model_types
from axzoo.model.spec import DecoderSpec
from axzoo.model.text_parts import language_model_config

_OLD_NAMES = {
    "max_position_embedings": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "rope_partial_factor": "partial_rotary_factor",
    "rope_theta_base": "rope_theta",
}

_DROPPED = frozenset({"hidden_act_param", "model_name"})
"""Keys of ax-llm-build without effect: a display name, and the slope of a leaky ReLU, which no family uses."""

_COMMON = frozenset({
    "attention_bias", "head_dim", "hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings",
    "max_window_layers", "mlp_bias", "model_type", "norm_type", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "original_max_position_embeddings", "partial_rotary_factor", "rms_norm_eps",
    "rope_parameters", "rope_scaling", "rope_theta", "sliding_window", "tie_word_embeddings", "use_sliding_window",
    "vocab_size", *_OLD_NAMES, *_DROPPED, *WITHOUT_EFFECT,
})  # fmt: skip


def merge_model_config(config: Mapping[str, Any], override: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """config.json with the values of `override`, which was read from `path`, under Hugging Face's key names.

    `config` is empty if the checkpoint has no config.json. rope_parameters (transformers 5) are split into rope_theta
    and rope_scaling, so that either can be overridden alone. Raises AxzooError if the override has an unknown key, sets
    one value under two names, or contradicts its model_type, or if the model_type is missing.
    """
    model_type = _model_type(config, override, path)
    keys = load_family(model_type).CONFIG_KEYS if model_type in supported_model_types() else ConfigKeys()
    _check_keys(override, {*_COMMON, *keys.names.values(), *keys.own, *config}, path)
    base = _with_flat_rope(config)
    merged = dict(base)
    given: dict[str, str] = {}  # config.json's key -> the override's
    for old, value in _with_flat_rope(override).items():
        name = _OLD_NAMES.get(old, old)
        if name in _DROPPED:
            continue
        if name in keys.implied and name not in base:
            if value != keys.implied[name]:
                raise AxzooError(
                    f"{path}: {old} is {value!r:.80}, but is always {keys.implied[name]!r} in {model_type}"
                )
            continue
        own = keys.names.get(name, name)
        if own in given:
            raise AxzooError(f"{path} sets the same value twice, as {given[own]} and as {old}: remove one of them")
        given[own] = old
        merged[own] = value
    return merged | {"model_type": model_type}


def _check_keys(override: Mapping[str, Any], known: Collection[str], path: Path) -> None:
    for key in override:
        if key not in known:
            close = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"did you mean {close[0]!r}?" if close else "neither ax-llm-build nor config.json has such a key"
            raise AxzooError(f"{path}: unknown key {key!r:.80}: {hint}")


def _model_type(config: Mapping[str, Any], override: Mapping[str, Any], path: Path) -> str:
    """The merged model_type; ax-llm-build's name for qwen2 is qwen."""
    model_type = override.get("model_type", config.get("model_type"))
    if not isinstance(model_type, str):
        raise AxzooError(f"{path}: model_type is {model_type!r:.80}, and config.json has none either: set it here")
    return "qwen2" if "model_type" in override and model_type == "qwen" else model_type


def _with_flat_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with rope_parameters converted to the keys of transformers 4, unless it has both."""
    flat = dict(config)
    parameters = flat.get("rope_parameters")
    if isinstance(parameters, dict) and not flat.get("rope_scaling"):
        del flat["rope_parameters"]
        scaling = dict(parameters)
        flat |= {key: scaling.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in scaling}
        flat["rope_scaling"] = None if scaling in ({}, {"rope_type": "default"}) else scaling
    return flat


def read_spec(
    folder: Path,
    model_type: str,
    num_hidden_layers: int,
    ignore_config_keys: Collection[str],
    model_config: Path | None = None,
) -> DecoderSpec:
    """The spec of the checkpoint in `folder`, checked against the matrix.

    Raises AxzooError if model_type or num_hidden_layers differ, and as `spec_of` does.
    """
    path = folder / "config.json"
    config = read_config(path, model_config)
    found = config.get("model_type")
    if found != model_type and found in supported_model_types():
        raise AxzooError(f"{path} has model_type {found!r}, but the matrix says {model_type!r}")
    path = path if model_config is None else overridden_path(path, model_config)
    spec = spec_of(config, path, ignore_config_keys)
    if spec.num_hidden_layers != num_hidden_layers:
        raise AxzooError(
            f"{path} has {spec.num_hidden_layers} layers, but the matrix says num_hidden_layers: {num_hidden_layers}"
        )
    return spec


def overridden_path(path: Path, model_config: Path) -> Path:
    """How messages name a config.json whose values are overridden by `model_config`."""
    return Path(f"{path} (overridden by {model_config})")


def spec_of(config: Mapping[str, Any], path: Path, ignore_config_keys: Collection[str]) -> DecoderSpec:
    """The spec of a config.json that was read from `path`.

    Raises AxzooError if its model_type is not supported, or it has values or keys that axzoo does not support.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in supported_model_types():
        raise AxzooError(
            f"{path}: model_type {model_type!r:.80} is not supported; supported are: "
            f"{', '.join(supported_model_types())}. The config has {_architecture(config)}. "
            f"If the model has one of these architectures under another name, pass a model_config with that model_type"
        )
    view = ConfigView(config, path, ignore_config_keys)
    try:
        spec = load_family(model_type).decoder_spec(view)
    except AxzooError as error:
        raise error if str(path) in str(error) else AxzooError(f"{path}: {error}") from None
    view.finish()
    return spec


def read_config(path: Path, model_config: Path | None) -> dict[str, Any]:
    """config.json merged with `model_config`, which may also stand alone if the checkpoint has no config.json."""
    override = None if model_config is None else _mapping(model_config)
    config = language_model_config(_mapping(path), path) if override is None or path.exists() else {}
    return config if override is None or model_config is None else merge_model_config(config, override, model_config)


def _architecture(config: Mapping[str, Any]) -> str:
    """What an unsupported config.json says about its architecture, including nested models."""
    found = [f"{key} {config.get(key)!r:.160}" for key in ("model_type", "architectures", "auto_map") if key in config]
    nested = {key: value for key, value in config.items() if isinstance(value, dict) and "model_type" in value}
    found += [f"{key!s:.80} with model_type {value['model_type']!r:.80}" for key, value in nested.items()]
    return ", ".join(found) or "no model_type and no architecture"


def _mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise AxzooError(f"{path} is not a JSON object")
    return content


def format_config(model_name: str, spec: DecoderSpec) -> str:
    """Renders a model as the block that `llm_build` prints: Config(model_name='...', ..., hidden_act='silu').

    MiniCPM's scale_depth, scale_emb and dim_model_base, which the vendor prints for every model, appear only if they
    differ from 1; hidden_act_param, which nothing reads, is omitted.
    """
    layer = spec.layer
    scales = {
        "scale_depth": (layer.residual_scale, spec.num_hidden_layers**0.5),
        "scale_emb": (spec.embedding_scale, 1),
        "dim_model_base": (spec.post.logit_scale, layer.hidden_size),
    }
    values: dict[str, object] = {
        "model_name": model_name,
        "model_type": spec.model_type,
        "num_hidden_layers": spec.num_hidden_layers,
        "num_attention_heads": layer.num_attention_heads,
        "num_key_value_heads": layer.num_key_value_heads,
        "hidden_size": layer.hidden_size,
        "intermediate_size": layer.intermediate_size,
        "vocab_size": spec.vocab_size,
        "rope_theta": layer.rope.theta,
        "max_position_embeddings": layer.max_position_embeddings,
        "rope_partial_factor": layer.rope.rotary_dim / layer.head_dim,
        "rms_norm_eps": layer.norm.eps,
        "norm_type": layer.norm.kind,
        "hidden_act": layer.hidden_act,
        **{name: _rounded(scale * unit) for name, (scale, unit) in scales.items() if scale != 1},
    }
    return "Config(\n" + ",\n".join(f"    {name}={value!r}" for name, value in values.items()) + "\n)"


def _rounded(number: float) -> float:
    """The number as config.json has it, without rounding errors in the last digits: 1.4, and 12 for 12.0."""
    rounded = round(number, 6)
    return int(rounded) if rounded.is_integer() else rounded
