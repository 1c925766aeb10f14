"""The checkpoint given to `llm_build`, and the facts about it that a matrix entry must state."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axzoo.checkpoint.gguf.conversion import model_config
from axzoo.checkpoint.gguf.reader import GgufCheckpoint
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json
from axzoo.fetch.folder import local_checkpoint, report_unused
from axzoo.matrix.resources import WIDTHS
from axzoo.model.config_view import has_config_key
from axzoo.model.families import load_family
from axzoo.model.reading import merge_model_config, overridden_path, spec_of
from axzoo.model.spec import DecoderSpec
from axzoo.model.text_parts import language_model_config
from axzoo.parts.kind import PartKind
from axzoo.parts.kinds import KINDS
from axzoo.tokenizer.local import LocalTokenizer, find_tokenizer, require_rows
from axzoo.weights.recipe import Recipe


@dataclass(frozen=True)
class InputModel:
    """A checkpoint folder or GGUF file and its properties.

    `path` is absolute. `name` is valid as the name of a matrix entry. `shown_name` is the model_name in --model_config,
    or else the same as `name`.
    """

    path: Path
    name: str
    shown_name: str
    spec: DecoderSpec
    tokenizer: LocalTokenizer | None  # None if there is none, and for a GGUF file, where fetch converts it
    has_chat_template: bool

    @property
    def sizes(self) -> dict[str, int]:
        """The `sizes` of a matrix entry: parameters per layer and in the post layer, and the layer's widths."""
        built = [kind for kind in KINDS if kind.is_built(Recipe()) and kind.ids(self.spec)]
        sized = {kind.name: self._parameters(kind) for kind in built if kind.on_device}
        return {**sized, **{name: getattr(self.spec.layer, field) for name, field in WIDTHS.items()}}

    @property
    def parameters(self) -> int:
        """Parameters of the whole model. Tied embeddings are counted once."""
        tied = self.spec.tie_word_embeddings
        counted = [kind for kind in KINDS if kind.is_built(Recipe()) and (kind.on_device or not tied)]
        return sum(self._parameters(kind) * len(kind.ids(self.spec)) for kind in counted)

    def _parameters(self, kind: PartKind) -> int:
        """Parameters of one part of a kind. A fused tensor that several roles refer to is counted once."""
        parts = kind.ids(self.spec)
        if not parts:
            return 0
        tensors = kind.tensors(load_family(self.spec.model_type), self.spec, parts[0].index)
        shapes = {tensor.name: tensor.shape for tensor in tensors.values()}
        return sum(map(math.prod, shapes.values()))


def read_override(model_config: Path | None, model_type: str | None) -> dict[str, Any]:
    """The config.json keys overridden by --model_config and --model_type. The option takes precedence over the file.

    Raises AxzooError when the file is missing or is not a JSON object.
    """
    override = {} if model_config is None else read_json(model_config)
    if not isinstance(override, dict):
        raise AxzooError(f"{model_config} is not a mapping: write the keys to override as a JSON object")
    return override | ({} if model_type is None else {"model_type": model_type})


def read_model(
    path: Path, override: Mapping[str, Any], overridden_by: Path, ignore_config_keys: Collection[str]
) -> InputModel:
    """Read the config and tokenizer of the checkpoint at `path`.

    `overridden_by` names the source of `override` in messages. Raises AxzooError when there is no checkpoint at `path`,
    or when axzoo does not support it.
    """
    found = local_checkpoint(str(path))
    report_unused(found)
    root, file = found.folder, found.gguf
    gguf = GgufCheckpoint(file) if file else None
    config_path = file or root / "config.json"
    config: Mapping[str, Any] = model_config(gguf) if gguf else _config_json(config_path, bool(override))
    source = config_path
    if override:
        config = merge_model_config(config, override, overridden_by)
        source = overridden_path(config_path, overridden_by)
    for key in ignore_config_keys:
        if not has_config_key(config, key):
            raise AxzooError(f"--ignore_config_keys {key}: {config_path} has no such key: omit it")
    spec = spec_of(config, source, ignore_config_keys)
    tokenizer = None if gguf else find_tokenizer(root)
    if tokenizer is not None:
        require_rows(tokenizer, spec.vocab_size)
    template = gguf.metadata.get("tokenizer.chat_template") if gguf else None
    name = _entry_name(path)
    return InputModel(
        path=root if path.is_dir() or file is None else file,
        name=name,
        shown_name=_shown_name(override, overridden_by) or name,
        spec=spec,
        tokenizer=tokenizer,
        has_chat_template=isinstance(template, str) if tokenizer is None else tokenizer.chat is not None,
    )


def _config_json(path: Path, may_be_missing: bool) -> dict[str, Any]:
    config = {} if may_be_missing and not path.exists() else read_json(path)
    if not isinstance(config, dict):
        raise AxzooError(f"{path} is not a JSON object: it is not the config.json of a Hugging Face checkpoint")
    return language_model_config(config, path)


def _shown_name(override: Mapping[str, Any], overridden_by: Path) -> str:
    """The model_name of an ax-llm-build config file, or "" if it has none."""
    name = override.get("model_name", "")
    if not isinstance(name, str):
        raise AxzooError(f"{overridden_by}: model_name is {name!r:.80}, but must be text")
    return name


def _entry_name(path: Path) -> str:
    """The name of the folder, or of the GGUF file without its extension, as a valid name of a matrix entry.

    For a snapshot in the hub's cache (models--ORG--NAME/snapshots/COMMIT), it is the name of the repository.
    """
    given = path.resolve() if ".." in path.parts else path.absolute()
    name = re.sub(r"\.gguf$", "", given.name, flags=re.IGNORECASE)
    if given.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", name):
        name = given.parts[-3].split("--")[-1]
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".-")[:128] or "model"
