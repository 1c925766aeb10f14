"""post_config.json from a checkpoint's generation_config.json.

As in transformers, a checkpoint samples only if it says `do_sample: true`; otherwise the most probable token is
selected, whatever temperature the file lists. Without a generation_config.json, the board's settings apply.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.runtime.post_config import GREEDY, PostConfig
from axzoo.tokenizer.added_tokens import read_object

logger = logging.getLogger(__name__)

GENERATION_CONFIG = "generation_config.json"


def checkpoint_sampling(folder: Path) -> PostConfig:
    """The sampling settings of the checkpoint whose generation_config.json is in `folder`, with the board's settings
    where it has none. Values that are not valid are left out with a warning."""
    path = folder / GENERATION_CONFIG
    if not path.is_file():
        return PostConfig()
    values = read_object(path)
    penalty = _value(path, values, "repetition_penalty")
    temperature = None if values.get("temperature") == 0 else _value(path, values, "temperature")
    config = GREEDY
    if values.get("do_sample") is True and values.get("temperature") != 0:
        config = _candidates(path, values)
        config = config if temperature is None else replace(config, temperature=temperature)
    if penalty is None:
        return config
    return replace(config, enable_repetition_penalty=penalty != 1, repetition_penalty=penalty)


def _candidates(path: Path, values: Mapping[str, Any]) -> PostConfig:
    """The board's settings with the checkpoint's top_p and top_k. The board applies top_p if it is enabled, else top_k,
    so all tokens are candidates with a top_p of 1."""
    unlimited = values.get("top_k") in (0, -1)
    top_k = None if unlimited else _value(path, values, "top_k")
    top_p = _value(path, values, "top_p")
    limits = top_p is not None and top_p < 1
    return PostConfig(
        enable_top_p_sampling=limits or unlimited,
        top_p=PostConfig.top_p if top_p is None and not unlimited else 1.0 if top_p is None else top_p,
        enable_top_k_sampling=top_k is not None or not (limits or unlimited),
        top_k=PostConfig.top_k if top_k is None else top_k,
    )


def _value(path: Path, values: Mapping[str, Any], key: str) -> Any:
    """The value of a key, or None if there is none, or none that post_config.json can hold."""
    value = values.get(key)
    if value is None:
        return None
    if key == "top_k" and type(value) is float and value.is_integer():
        value = int(value)
    given: dict[str, Any] = {key: value}
    try:
        PostConfig(**given)
    except AxzooError as error:
        logger.warning(f"{path}: {error}; the board's default applies")
        return None
    return value
