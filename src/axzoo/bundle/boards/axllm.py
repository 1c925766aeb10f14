"""config.json as axllm reads it: its keys, their JSON types, and what a bundle's file contains.

axllm ignores keys that it does not know, so a bundle has one config.json for all hosts. A value of another type than
the key's spoils the whole file, also `1` where a key takes true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from axzoo.bundle.boards.templates import TemplateChoice
from axzoo.tokenizer.tokenizer_txt import FILE_NAME as TOKENIZER_TXT

_INT, _BOOL, _TEXT, _EITHER = (int,), (bool,), (str,), (bool, int)
KEYS: Mapping[str, tuple[type, ...]] = {
    "template_filename_axmodel": _TEXT,
    "filename_post_axmodel": _TEXT,
    "url_tokenizer_model": _TEXT,
    "tokenizer_type": _TEXT,
    "filename_tokens_embed": _TEXT,
    "axmodel_num": _INT,
    "tokens_embed_num": _INT,
    "tokens_embed_size": _INT,
    "model_name": _TEXT,
    "post_config_path": _TEXT,
    "system_prompt": _TEXT,
    "use_mmap_load_embed": _BOOL,
    "b_use_mmap_load_embed": _BOOL,
    "use_mmap_load_layer": _BOOL,
    "b_use_mmap_load_layer": _BOOL,
    "bos": _EITHER,
    "eos": _EITHER,
    "pad_token_id": _INT,
    "enable_thinking": _BOOL,
    "thinking_mode": _TEXT,
    "dynamic_load_enable": _EITHER,
    "dynamic_load_pool_size": _INT,
    "mem_guard_enable": _EITHER,
    "mem_guard_floor_mb": _INT,
    "mem_guard_on_unsafe": _TEXT,
    "kv_cache_slots": _INT,
    "kv_cache_slot_location": _TEXT,
    "layer_types": (list,),
    "sliding_window": _INT,
    "full_attention_interval": _INT,
    "num_kv_shared_layers": _INT,
    "is_embedding": _BOOL,
    "embedding": _BOOL,
    "embedding_type": _BOOL,
    "port": _INT,
    "server_timeout_ms": _INT,
    "server_default_max_tokens": _INT,
    "server_max_output_tokens": _INT,
    "server_forced_prompt_text": _TEXT,
    "devices": (list,),
    "vlm_type": (str, int),
    "VLM_TYPE": (str, int),
}
"""The keys that axllm reads, with the JSON types that it accepts for each."""
REQUIRED = tuple(KEYS)[:9]
_PATHS = (
    "template_filename_axmodel",
    "filename_post_axmodel",
    "url_tokenizer_model",
    "filename_tokens_embed",
    "post_config_path",
)

TOKENIZER_TYPES = (
    "Qwen2_5", "Qwen3", "Qwen3VL", "InternVL3", "HunYuan", "SmolVLM2", "FastVLM", "MiniCPM4", "MiniCPMV4", "Gemma3",
    "Gemma3VL", "SmolLM2", "SmolLM3", "GLM5", "GLM5VL", "KimiK25", "KimiK25VL", "Qwen3Omni", "Qwen3_5", "Qwen3_5VL",
    "MiniMaxM2", "MiniMaxM2VL", "MiniCPMO4_5", "InternVL3_5", "PaddleOCRVL", "Gemma4", "Gemma4VL", "MiniCPMV46",
    "MiniCPMV46VL", "MiniCPM5", "LocateAnything", "Phi4", "Phi4Mini",
)  # fmt: skip
"""The values of tokenizer_type, which are case-sensitive."""


def axllm_config(
    name: str, parts: Mapping[str, Any], template: TemplateChoice, pad_token_id: int | None
) -> dict[str, Any]:
    """The keys of config.json that axllm reads. `parts` are those that name the compiled files.

    Without a built-in template there is no tokenizer_type, and axllm refuses to start rather than use another one.
    """
    chosen = template.tokenizer_type
    return {
        "model_name": name,
        **({} if chosen is None else {"tokenizer_type": chosen}),
        "url_tokenizer_model": TOKENIZER_TXT,
        **parts,
        "system_prompt": template.system_prompt,
        "post_config_path": "post_config.json",
        "bos": False,
        "eos": False,
        "use_mmap_load_embed": True,
        "use_mmap_load_layer": True,
        **({} if pad_token_id is None else {"pad_token_id": pad_token_id}),
    }


def config_faults(config: Mapping[str, Any]) -> list[str]:
    """What keeps axllm from loading this config.json: one sentence for each key."""
    return [*_missing(config), *_wrong_types(config), *_wrong_items(config), *_wrong_values(config)]


def _missing(config: Mapping[str, Any]) -> list[str]:
    return [f"config.json has no {key}: {_REMEDIES.get(key, 'write it')}" for key in REQUIRED if key not in config]


_REMEDIES = {
    "tokenizer_type": "if one of axllm's chat templates suits the model, write its name, otherwise use another host"
}


def _wrong_types(config: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} must be {' or '.join(_JSON[kind] for kind in KEYS[key])}, not {value!r:.80}"
        for key, value in config.items()
        if key in KEYS and type(value) not in KEYS[key]
    ]


_JSON = {str: "a string", int: "a whole number", bool: "true or false", list: "a list"}


_ITEMS = {"layer_types": str, "devices": int}
"""The types of the items of lists."""


def _wrong_items(config: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} must be a list of {'strings' if kind is str else 'whole numbers'}, not {config[key]!r:.80}"
        for key, kind in _ITEMS.items()
        if isinstance(config.get(key), list) and any(type(item) is not kind for item in config[key])
    ]


def _wrong_values(config: Mapping[str, Any]) -> list[str]:
    texts: Sequence[tuple[str, str]] = [(key, config[key]) for key in _PATHS if type(config.get(key)) is str]
    faults = [
        f"{key} {path!r:.80} is a URL, which axllm does not load: name a file in the bundle"
        for key, path in texts
        if "://" in path
    ]
    faults += [
        f"{key} {path!r:.80} is not relative to the bundle: write it without ./ and without a leading /"
        for key, path in texts
        if path.startswith(("./", "/"))
    ]
    kind = config.get("tokenizer_type")
    if type(kind) is str and kind not in TOKENIZER_TYPES:
        faults.append(f"tokenizer_type {kind!r:.80} is not one of axllm's: use {', '.join(TOKENIZER_TYPES)}")
    return faults
