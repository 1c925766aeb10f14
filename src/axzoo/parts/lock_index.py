"""index.json of a lock, which describes the whole model. Plans and bundles read it without numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json, require_format
from axzoo.model.spec import DecoderSpec, SpecError

LOCK_FORMAT = 2
"""The format version of a lock's files. Older locks are not read: making a lock again is cheap."""


INDEX = "index.json"
"""The file with the model's spec, source and tokenizer files."""


@dataclass(frozen=True)
class LockIndex:
    """The content of index.json: the model's spec, its checkpoint's source, and the sha256 of each tokenizer file.

    `ignored` are the config keys and tensors that the user vouched for, by kind. `config` is config.json with the
    values of a model_config; empty in the lock of an older axzoo.
    """

    spec: DecoderSpec
    source: Mapping[str, Any]
    tokenizer_files: Mapping[str, str]
    ignored: Mapping[str, list[str]]
    config: Mapping[str, Any]


def read_index(folder: Path) -> LockIndex:
    """Reads a lock's index.json. Raises AxzooError when it is missing, damaged or written by another version."""
    path = folder / INDEX
    data = read_json(path)
    require_format(data, LOCK_FORMAT, path, f"remove {folder} and build again", oldest=LOCK_FORMAT)
    try:
        spec, ignored = DecoderSpec.from_dict(data["spec"]), dict(data.get("ignored", {}))
        config = dict(data.get("config", {}))
        return LockIndex(spec, data["source"], dict(data["tokenizer_files"]), ignored, config)
    except SpecError as error:
        raise AxzooError(f"{path}: {error}: remove {folder} and build again") from None
    except (KeyError, TypeError, ValueError):
        raise AxzooError(f"{path} is damaged: remove {folder} and build again") from None
