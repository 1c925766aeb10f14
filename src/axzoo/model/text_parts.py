"""The language models inside vision-language models: Qwen2-VL, Qwen2.5-VL, InternVL, SmolVLM and Idefics3.

Only the language model is built, as a model of its own family. Its keys are in a mapping of config.json, or, in older
files, beside those of the vision part. Text has equal positions in all sections of a multimodal rope, so the plain rope
applies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.model.config_keys import WITHOUT_EFFECT

_ANY: tuple[Any, ...] = ()

_OF_ALL: Mapping[str, tuple[Any, ...]] = dict.fromkeys(
    ["vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"], _ANY
)


@dataclass(frozen=True)
class VisionLanguageModel:
    """How a model_type combines a language model with its vision part.

    `key` is config.json's key of the language model's config. `families` are the families that build it, by its own
    model_type. `keys` concern only the vision part: with any value, or with the listed ones. `tensors` is a regular
    expression for the names of the vision part's tensors. `ties` says whether config.json itself, not the inner config,
    decides if lm_head is the embedding, and what it is if neither says so.
    """

    key: str
    families: Mapping[str, str]
    keys: Mapping[str, tuple[Any, ...]]
    tensors: str
    ties: bool = True
    tied_by_default: bool = False


_LLAMA_OF_SMOLVLM = VisionLanguageModel(
    "text_config",
    {"llama": "llama"},
    dict.fromkeys(["_pad_token_id", "perceiver_config", "pixel_shuffle_factor", "scale_factor", "use_resampler"], _ANY)
    | {"qk_layer_norms": (False,)},
    r"model\.(vision_model|connector)\..+",
)

VISION_LANGUAGE_MODELS: Mapping[str, VisionLanguageModel] = {
    "idefics3": _LLAMA_OF_SMOLVLM,
    "smolvlm": _LLAMA_OF_SMOLVLM,
    "internvl": VisionLanguageModel(
        "text_config",
        {name: name for name in ("llama", "qwen2", "qwen3")},
        dict.fromkeys(
            [
                "downsample_ratio", "image_seq_length", "projector_hidden_act", "vision_feature_layer",
                "vision_feature_select_strategy",
            ],
            _ANY,
        ),
        r"(model\.)?(vision_tower|multi_modal_projector)\..+",
        tied_by_default=True,
    ),
    "internvl_chat": VisionLanguageModel(
        "llm_config",
        {name: name for name in ("llama", "phi3", "qwen2", "qwen3")},
        dict.fromkeys(
            [
                "downsample_ratio", "dynamic_image_size", "force_image_size", "max_dynamic_patch", "min_dynamic_patch",
                "pad2square", "ps_version", "select_layer", "system_message", "template", "use_backbone_lora",
                "use_thumbnail",
            ],
            _ANY,
        )
        | {"use_llm_lora": (0, False)},
        r"(vision_model|mlp1)\..+",
        ties=False,
    ),
    "qwen2_5_vl": VisionLanguageModel(
        "text_config", {"qwen2_5_vl_text": "qwen2", "qwen2_5_vl": "qwen2"}, {"vision_token_id": _ANY},
        r"(model\.)?visual\..+",
    ),
    "qwen2_vl": VisionLanguageModel(
        "text_config", {"qwen2_vl_text": "qwen2", "qwen2_vl": "qwen2"}, {"vision_token_id": _ANY},
        r"(model\.)?visual\..+",
    ),
}  # fmt: skip
"""By the model_type of config.json."""

_TIES = "tie_word_embeddings"


def vision_language_model(config: Mapping[str, Any]) -> VisionLanguageModel | None:
    """What config.json's model_type combines; None if it is not one of these models."""
    model_type = config.get("model_type")
    return VISION_LANGUAGE_MODELS.get(model_type) if isinstance(model_type, str) else None


def language_model_config(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The config of the language model inside `config`, with its family as model_type; a copy of other configs.

    Keys beside the inner config are kept unless they concern only the vision part, so that none is passed over
    silently. Raises AxzooError when the language model is not supported, or both places have a key with different
    values that may have an effect.
    """
    whole = vision_language_model(config)
    if whole is None:
        return dict(config)
    inner = config.get(whole.key, {})
    if not isinstance(inner, dict):
        raise AxzooError(f"{path}: {whole.key} must be a mapping, not {inner!r:.80}")
    model_type = inner.get("model_type", config["model_type"])
    family = whole.families.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise AxzooError(
            f"{path}: the language model of {config['model_type']} has model_type {model_type!r:.80}, which is not "
            f"supported; supported are: {', '.join(whole.families)}"
        )
    outer = {key: value for key, value in _without(whole, config).items() if key not in (whole.key, _TIES)}
    found = _without(whole, inner)
    for key in outer.keys() & found.keys() - WITHOUT_EFFECT:
        if outer[key] != found[key]:
            raise AxzooError(
                f"{path}: {key} is {outer[key]!r:.80}, but {whole.key} has {found[key]!r:.80}: correct one of them"
            )
    places = (config, inner) if whole.ties else (inner,)
    ties = [place[_TIES] for place in places if place.get(_TIES) is not None]
    return {**outer, **found, _TIES: ties[0] if ties else whole.tied_by_default, "model_type": family}


def _without(whole: VisionLanguageModel, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without those that concern only the vision part."""
    keys = {**_OF_ALL, **whole.keys}
    return {key: value for key, value in values.items() if key not in keys or (keys[key] and value not in keys[key])}
