"""The rope parameters of config.json as transformers reads them: the type, its parameters, and those without effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.model.rope import OPTIONAL, ORIGINAL, REQUIRED, ROPE_TYPES

_SAME_TYPE = {"mrope": "default", "su": "longrope"}
"""Other names of rope types. mrope differs from default only for images: text has the same position in all sections."""

_OF_IMAGES_AND_TRAINING = ("finetuned", "mrope_interleaved", "mrope_section")
"""Parameters without effect for every rope type."""

_NEUTRAL = ("attention_factor", "attn_factor", "extrapolation_factor")
"""Parameters without effect if they are 1."""

_CAUSES = {
    "attn_factor": "transformers passes over attn_factor, but other programs multiply cos and sin by it: say what is "
    "meant with attention_factor, which is 0.1 ln(factor) + 1 in transformers, and that times attn_factor in the others"
}


def rope_type_of(scaling: Mapping[str, Any]) -> Any:
    """The rope type in rope parameters, under its usual name; "default" if there are none.

    Raises AxzooError if `rope_type` and its older name `type` contradict each other, or if neither is there although
    other parameters are.
    """
    stated = [scaling[key] for key in ("rope_type", "type") if scaling.get(key) is not None]
    kinds = [_SAME_TYPE.get(kind, kind) if isinstance(kind, str) else kind for kind in stated]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        raise AxzooError(
            f"rope_type is {stated[0]!r:.80}, but type, its older name, is {stated[1]!r:.80}: set the wrong one to null"
        )
    others = [
        key if key.isprintable() else repr(key)
        for key, value in scaling.items()
        if value is not None and key not in _OF_IMAGES_AND_TRAINING
    ]
    if not kinds and others:
        raise AxzooError(f"the rope parameters {', '.join(others):.200} have no rope_type: add it")
    return kinds[0] if kinds else "default"


def split_parameters(kind: Any, scaling: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """What `make_rope` takes, and the parameters that this rope type does not take, with the reason if there is one.

    Parameters that are null, or have no effect with this type and value, are in neither. Null for `truncate` is false,
    as in transformers.
    """
    values = {key: value for key, value in scaling.items() if value is not None and key not in ("rope_type", "type")}
    if "truncate" in scaling:
        values.setdefault("truncate", False)
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        return {"rope_type": kind, **values}, {}
    known = REQUIRED[kind] | OPTIONAL.get(kind, set())
    others = {key: value for key, value in values.items() if key not in known}
    unknown = {key: _CAUSES.get(key, "") for key in others if not _has_no_effect(key, kind, scaling)}
    return {"rope_type": kind, **{key: value for key, value in values.items() if key in known}}, unknown


def _has_no_effect(key: str, kind: str, scaling: Mapping[str, Any]) -> bool:
    value = scaling[key]
    if key in _OF_IMAGES_AND_TRAINING or (key == ORIGINAL and kind == "linear"):
        return True
    if kind == "default" and any(key in names for names in (*REQUIRED.values(), *OPTIONAL.values())):
        return True  # it is unscaled, whatever the parameters of the other types are
    if key == "attn_factor" and scaling.get("attention_factor") is not None:
        return True  # attention_factor says what is meant
    return key in _NEUTRAL and not isinstance(value, bool) and value == 1
