"""The checkpoint `llm_build` is pointed at: what a matrix entry must state of it, read from its own files."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axzoo.checkpoint.gguf import GgufCheckpoint
from axzoo.checkpoint.lock import spec_of
from axzoo.errors import AxzooError
from axzoo.families import load_family
from axzoo.fetch.folder import find_gguf
from axzoo.fetch.gguf_config import model_config
from axzoo.files import read_json
from axzoo.model_config import merge_model_config
from axzoo.spec import DecoderSpec
from axzoo.tokenizer.local import load_tokenizer
from axzoo.zoo.jobs import layers_per_job


@dataclass(frozen=True)
class Model:
    """A checkpoint folder or GGUF file, by its absolute path, and what it says of itself."""

    path: Path
    name: str
    spec: DecoderSpec
    has_chat_form: bool
    has_vision_tower: bool

    @property
    def layers_per_job(self) -> int:
        """How many layers share a job."""
        tensors = load_family(self.spec.model_type).layer_tensors(self.spec, 0).values()
        shapes = {tensor.name: tensor.shape for tensor in tensors}  # by name: a fused tensor is named by several roles
        return layers_per_job(sum(map(math.prod, shapes.values())))


def read_override(model_config: Path | None, model_type: str | None) -> dict[str, Any]:
    """What --model_config and --model_type say instead of config.json; the option wins over the file.

    Raises AxzooError when the file is missing or no mapping.
    """
    override = {} if model_config is None else read_json(model_config)
    if not isinstance(override, dict):
        raise AxzooError(f"{model_config} is not a mapping: write the keys to override as a JSON object")
    return override | ({} if model_type is None else {"model_type": model_type})


def read_model(
    path: Path, override: Mapping[str, Any], overridden_by: Path, ignore_config_keys: Collection[str]
) -> Model:
    """Reads config and tokenizer. `overridden_by` is what messages call the override.

    Raises AxzooError when there is no checkpoint at `path`, or it is one axzoo does not build.
    """
    root = path.resolve()
    file = find_gguf(root)
    gguf = GgufCheckpoint(file) if file else None
    config_path = file or root / "config.json"
    config: Mapping[str, Any] = model_config(gguf) if gguf else _config_json(config_path, bool(override))
    if override:
        config = merge_model_config(config, override, overridden_by)
    spec = spec_of(config, config_path, ignore_config_keys)
    chats = isinstance(gguf.metadata.get("tokenizer.chat_template"), str) if gguf else bool(load_tokenizer(root).chat)
    vision_keys = getattr(load_family(spec.model_type), "VISION_KEYS", ())
    return Model(
        path=root,
        name=_entry_name(root),
        spec=spec,
        has_chat_form=chats,
        has_vision_tower=any(key in config for key in vision_keys),
    )


def _config_json(path: Path, may_be_missing: bool) -> dict[str, Any]:
    config = {} if may_be_missing and not path.exists() else read_json(path)
    if not isinstance(config, dict):
        raise AxzooError(f"{path} is not a mapping: it is no config.json of a Hugging Face checkpoint")
    return config


def _entry_name(root: Path) -> str:
    """The folder's own name in the letters of a matrix; a GGUF file's without its ending."""
    name = root.name.removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".-")[:128] or "model"
