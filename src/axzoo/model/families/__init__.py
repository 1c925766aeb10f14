"""One file per architecture, named after config.json's model_type.

A family file only maps names and values; it computes nothing. It defines

    decoder_spec(config: ConfigView) -> DecoderSpec
    layer_tensors(spec: DecoderSpec, layer: int) -> dict[str, TensorRef]
    post_tensors(spec: DecoderSpec) -> dict[str, TensorRef]
    embed_tensor(spec: DecoderSpec) -> TensorRef
    CONFIG_KEYS: the keys a `--model_config` may have beyond the common ones
    ROPE_TYPES: the supported rope types
    PARITY_TESTS: the tests that compare it with an independent implementation

and, if the checkpoints contain other models as well,

    IGNORED_TENSORS: a regular expression for their tensors

To add a family, add its file here and a line to the table in tests/model/families/test_parity.py.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from axzoo.core.errors import AxzooError

if TYPE_CHECKING:
    from axzoo.model.config_view import ConfigView  # imports numpy, which planning does not need
    from axzoo.model.spec import DecoderSpec, TensorRef

if TYPE_CHECKING:
    from axzoo.model.config_view import ConfigView


@dataclass(frozen=True)
class ConfigKeys:
    """How the keys of a family's config.json differ from the common ones (`axzoo.model.reading`).

    `names` maps common names to config.json's. `implied` are values that the model_type fixes: config.json has no key
    for them, and an override must agree. `own` are keys that no other family has.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    implied: Mapping[str, Any] = field(default_factory=lambda: {"norm_type": "rms_norm", "partial_rotary_factor": 1.0})
    own: tuple[str, ...] = ()


class Family(Protocol):
    CONFIG_KEYS: ConfigKeys
    ROPE_TYPES: tuple[str, ...]
    PARITY_TESTS: str

    def decoder_spec(self, config: ConfigView) -> DecoderSpec: ...
    def layer_tensors(self, spec: DecoderSpec, layer: int) -> Mapping[str, TensorRef]: ...
    def post_tensors(self, spec: DecoderSpec) -> Mapping[str, TensorRef]: ...
    def embed_tensor(self, spec: DecoderSpec) -> TensorRef: ...


VISION_MODEL_TYPES = frozenset({"minicpmv"})
"""The families whose spec has a vision model. Plans need to know it before config.json is read."""


def supported_model_types() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_")


def load_family(model_type: str) -> Family:
    """The family file of a model_type. Raises AxzooError if there is none."""
    known = supported_model_types()
    if model_type not in known:
        raise AxzooError(f"model_type {model_type!r} is not supported; supported are: {', '.join(known)}")
    return cast(Family, importlib.import_module(f"axzoo.model.families.{model_type}"))
