"""`--model_config`: a JSON file whose keys override config.json's, or stand for it where a checkpoint has none.

It may be written for ax-llm-build, whose names are not Hugging Face's (`rope_theta_base`, and `max_position_embedings`
as it spells it), with Hugging Face's names, or with both. A family's own names are in its file, CONFIG_KEYS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json
from axzoo.model.config_view import WITHOUT_EFFECT, ConfigView
from axzoo.model.families import ConfigKeys, load_family, supported_model_types
from axzoo.model.spec import DecoderSpec

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


def read_spec(
    folder: Path,
    model_type: str,
    num_hidden_layers: int,
    ignore_config_keys: Collection[str],
    model_config: Path | None = None,
) -> DecoderSpec:
    """The spec config.json describes, checked against what the matrix says of the model."""
    path = folder / "config.json"
    config = _read_config(path, model_config)
    said = config.get("model_type")
    if said != model_type and said in supported_model_types():
        raise AxzooError(f"{path} has model_type {said!r}, but the matrix says {model_type!r}")
    path = path if model_config is None else changed_by(path, model_config)
    spec = spec_of(config, path, ignore_config_keys)
    if spec.num_hidden_layers != num_hidden_layers:
        raise AxzooError(
            f"{path} has {spec.num_hidden_layers} layers, but the matrix says num_hidden_layers: {num_hidden_layers}"
        )
    return spec


def changed_by(path: Path, model_config: Path) -> Path:
    """What messages call a config.json with the values that `model_config` puts in their place."""
    return Path(f"{path} as changed by {model_config}")


def spec_of(config: Mapping[str, Any], path: Path, ignore_config_keys: Collection[str]) -> DecoderSpec:
    """The spec a config.json, read from `path`, describes.

    Raises AxzooError when its model_type is not supported, or it says what axzoo cannot build or does not know.
    """
    said = config.get("model_type")
    if said not in supported_model_types():
        raise AxzooError(
            f"{path}: model_type {said!r:.80} is not supported; supported are: {', '.join(supported_model_types())}. "
            f"Not understood: {_not_understood(config)}. "
            f"A model that is one of these under another name needs a model_config that says so"
        )
    view = ConfigView(config, path)
    try:
        spec = load_family(said).decoder_spec(view)
    except AxzooError as error:
        raise error if str(path) in str(error) else AxzooError(f"{path}: {error}") from None
    view.finish(ignore_config_keys)
    return spec


def _read_config(path: Path, model_config: Path | None) -> dict[str, Any]:
    """config.json, or what `model_config` makes of it; alone, where the checkpoint has none."""
    override = None if model_config is None else _mapping(model_config)
    config = _mapping(path) if override is None or path.exists() else {}
    return config if override is None or model_config is None else merge_model_config(config, override, model_config)


def _not_understood(config: Mapping[str, Any]) -> str:
    """What an unsupported config.json says of its architecture, a model nested in it included."""
    said = [f"{key} {config.get(key)!r:.160}" for key in ("model_type", "architectures", "auto_map") if key in config]
    nested = {key: value for key, value in config.items() if isinstance(value, dict) and "model_type" in value}
    said += [f"{key!s:.80} with model_type {value['model_type']!r:.80}" for key, value in nested.items()]
    return ", ".join(said) or "it names no architecture at all"


def _mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise AxzooError(f"{path} is not a mapping")
    return content


def format_config(model_name: str, spec: DecoderSpec) -> str:
    """Renders a model as the block `llm_build` prints: Config(model_name='...', ..., hidden_act='silu').

    MiniCPM's scale_depth, scale_emb and dim_model_base, which the document shows of every model, stand where they scale
    something; hidden_act_param, which nothing reads, is left out.
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
        **{name: _plain(scale * unit) for name, (scale, unit) in scales.items() if scale != 1},
    }
    return "Config(\n" + ",\n".join(f"    {name}={value!r}" for name, value in values.items()) + "\n)"


def _plain(number: float) -> float:
    """As a config says it: 1.4, and 12 for 12.0, whatever the division before left in the last digits."""
    rounded = round(number, 6)
    return int(rounded) if rounded.is_integer() else rounded
