"""One file per architecture, named after config.json's model_type.

A family file is a pure mapping and computes nothing. It offers

    decoder_spec(config: ConfigView) -> DecoderSpec
    layer_tensors(spec: DecoderSpec, layer: int) -> dict[str, TensorRef]
    post_tensors(spec: DecoderSpec) -> dict[str, TensorRef]
    embed_tensor(spec: DecoderSpec) -> TensorRef
    CONFIG_KEYS: what a `--model_config` may say of it beyond the common keys
    ROPE_TYPES: the kinds of rope scaling it can have
    IGNORED_TENSORS: a regular expression of tensors that are derived from the config and hold no weights
    PARITY_TESTS: the tests that compare it with an independent implementation

To add a family, add its file here and its line to the table of tests/model/families/test_parity.py.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from axzoo.core.errors import AxzooError
from axzoo.model.config_view import ConfigView
from axzoo.model.spec import DecoderSpec, TensorRef


@dataclass(frozen=True)
class ConfigKeys:
    """How a family's config.json differs from the common names (`axzoo.model.reading`).

    `names`: the common name -> config.json's. `implied`: what the model_type says by itself, so that config.json has no
    key for it and an override can only agree. `own`: keys no other family has.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    implied: Mapping[str, Any] = field(default_factory=lambda: {"norm_type": "rms_norm", "partial_rotary_factor": 1.0})
    own: tuple[str, ...] = ()


class Family(Protocol):
    CONFIG_KEYS: ConfigKeys
    ROPE_TYPES: tuple[str, ...]
    IGNORED_TENSORS: str
    PARITY_TESTS: str

    def decoder_spec(self, config: ConfigView) -> DecoderSpec: ...
    def layer_tensors(self, spec: DecoderSpec, layer: int) -> Mapping[str, TensorRef]: ...
    def post_tensors(self, spec: DecoderSpec) -> Mapping[str, TensorRef]: ...
    def embed_tensor(self, spec: DecoderSpec) -> TensorRef: ...


def supported_model_types() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_")


def load_family(model_type: str) -> Family:
    """The family file of a model_type. Raises AxzooError for one axzoo has no file for."""
    known = supported_model_types()
    if model_type not in known:
        raise AxzooError(f"model_type {model_type!r} is not supported; supported are: {', '.join(known)}")
    return cast(Family, importlib.import_module(f"axzoo.model.families.{model_type}"))
