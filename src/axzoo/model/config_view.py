"""Reading config.json without silently skipping keys.

Every key must be read by the family, be null, be known not to affect the numbers, or be ignored explicitly by the user.
Other keys are refused, because they may change what the model computes. The same applies to rope parameters, which the
user ignores as rope_scaling.KEY.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.model.config_keys import causes, has_no_effect
from axzoo.model.rope import HIGHEST_NUMBER, HIGHEST_THETA, LOWEST_NUMBER, ROPE_TYPES, is_positive_number, make_rope
from axzoo.model.rope_parameters import rope_type_of, split_parameters
from axzoo.model.spec import RopeSpec

HIGHEST_EPSILON = 1.0
_REQUIRED: Any = object()
_ROPE_KEYS = ("rope_parameters", "rope_scaling")
_SAME_ACTIVATION = {
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "swish": "silu",
}
"""Other names that transformers has for the same function."""


def _printable(key: str) -> str:
    """A key for a message of one line."""
    return key if key.isprintable() else repr(key)


def has_config_key(config: Mapping[str, Any], key: str) -> bool:
    """Whether a config.json has an ignorable `key`: one of its own, or a rope parameter as rope_scaling.KEY."""
    outer, _, inner = key.partition(".")
    ropes = [config[name] for name in _ROPE_KEYS if isinstance(config.get(name), dict)]
    return key in config or (outer in _ROPE_KEYS and any(inner in rope for rope in ropes))


class ConfigView:
    """A config.json that records which keys were read. `ignored` are the keys that the user vouches for."""

    def __init__(self, values: Mapping[str, Any], path: Path, ignored: Collection[str] = ()) -> None:
        self._values = values
        self._read: set[str] = set()
        self._passed_over: set[str] = set()
        self._ignored = frozenset(ignored)
        self.path = path

    def number(
        self, key: str, default: Any = _REQUIRED, lowest: float = LOWEST_NUMBER, highest: float = HIGHEST_NUMBER
    ) -> float:
        """A positive number in a range, by default one that leaves room in fp32 for products with other numbers.

        Raises AxzooError if the key is absent without default, or its value is not such a number.
        """
        value = self._get(key, default)
        if not is_positive_number(value):
            raise self._wrong(key, value, "a positive number")
        if not lowest <= value <= highest:
            raise self._wrong(key, value, f"a number from {lowest:g} to {highest:g}")
        return float(value)

    def epsilon(self, key: str) -> float:
        """The number that a norm adds to a variance, at most 1. Raises AxzooError if it is anything else."""
        return self.number(key, highest=HIGHEST_EPSILON)

    def scale(self, key: str, default: Any = _REQUIRED) -> float:
        """A factor of hidden states or logits, from 1e-6 to 1e6. Raises AxzooError if it is anything else."""
        return self.number(key, default, 1e-6, 1e6)

    def size(self, key: str, default: Any = _REQUIRED) -> int:
        """A positive integer below 2**31. Raises AxzooError if it is not one."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
            raise self._wrong(key, value, "a positive integer")
        return value

    def optional_size(self, key: str) -> int | None:
        """A positive integer, or None if the key is absent, null or 0. Raises AxzooError for any other value."""
        return self.count(key, 0) or None

    def count(self, key: str, default: Any = _REQUIRED) -> int:
        """An integer from 0 to 2**31 - 1. Raises AxzooError if it is not one."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
            raise self._wrong(key, value, "an integer of 0 or more")
        return value

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        """A boolean. Raises AxzooError if it is not one."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def choice(self, key: str, allowed: Collection[Any], default: Any = _REQUIRED) -> Any:
        """One of the `allowed` values. Raises AxzooError if it is not one of them."""
        value = self._get(key, default)
        if value not in list(allowed):
            raise self._wrong(key, value, " or ".join(repr(item) for item in allowed))
        return value

    def string(self, key: str, default: Any = _REQUIRED) -> str:
        """A string. Raises AxzooError if it is not one."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def sizes(self, key: str, defaults: Mapping[str, int]) -> dict[str, int]:
        """A mapping of positive integers with the keys of `defaults`, which provide missing ones. Raises AxzooError for
        other keys and values."""
        values = self._mapping(key)
        if unknown := sorted(values.keys() - defaults.keys()):
            raise self._wrong(f"{key}.{unknown[0]}", values[unknown[0]], f"one of {', '.join(defaults)}")
        for name, value in values.items():
            if type(value) is not int or not 0 < value < 1 << 31:
                raise self._wrong(f"{key}.{name}", value, "a positive integer")
        return {**defaults, **values}

    def heads(self) -> tuple[int, int]:
        """num_attention_heads and num_key_value_heads, which defaults to the former.

        Raises AxzooError if the first is not a multiple of the second.
        """
        heads = self.size("num_attention_heads")
        kv_heads = self.size("num_key_value_heads", heads)
        if heads % kv_heads:
            raise self._wrong("num_attention_heads", heads, f"a multiple of num_key_value_heads, {kv_heads}")
        return heads, kv_heads

    def activation(self, key: str, allowed: Collection[str], default: Any = _REQUIRED) -> Any:
        """One of the `allowed` activation functions, also under another name of the same function."""
        value = self._get(key, default)
        same = _SAME_ACTIVATION.get(value, value) if isinstance(value, str) else value
        if same not in list(allowed):
            raise self._wrong(key, value, " or ".join(map(repr, allowed)))
        return same

    def ignore(self, *keys: str) -> None:
        """Passes over keys that have no effect in this family."""
        self._passed_over.update(keys)

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def rope(
        self,
        head_dim: int,
        max_position_embeddings: int,
        partial_rotary_factor: float | None = None,
        types: Collection[str] = ROPE_TYPES,
        theta: float = 10000.0,
    ) -> RopeSpec:
        """The rotary embedding, from the keys of transformers 4 or 5.

        `partial_rotary_factor` is the family's default, or None if the family always rotates whole heads. `types` are
        the rope types the family supports. `theta` is the family's default rope_theta.

        transformers 4 writes rope_theta, rope_scaling (null, or {"rope_type" or "type": ...}) and
        partial_rotary_factor; transformers 5 writes rope_parameters {"rope_theta": ..., "rope_type": ..., ...}.
        original_max_position_embeddings can be a key of config.json or one of the parameters.

        Both may be there if they agree. Parameters that the rope type passes over are passed over.

        Raises AxzooError for everything that `axzoo.model.rope.make_rope` refuses, for two different values of
        rope_theta or partial_rotary_factor, and for parameters that may have an effect.
        """
        given = {key: parameters for key in _ROPE_KEYS if (parameters := self._mapping(key))}
        ropes = [
            self._rope(key, parameters, head_dim, max_position_embeddings, partial_rotary_factor, types, theta)
            for key, parameters in (given or {"rope_scaling": {}}).items()
        ]
        if ropes[0] != ropes[-1]:
            raise AxzooError(
                f"{self.path}: rope_parameters and rope_scaling contradict each other, and transformers uses only "
                f"rope_scaling: pass a model_config that sets the wrong one to null"
            )
        return ropes[0]

    def _rope(
        self,
        key: str,
        scaling: dict[str, Any],
        head_dim: int,
        max_position_embeddings: int,
        partial_rotary_factor: float | None,
        types: Collection[str],
        theta: float,
    ) -> RopeSpec:
        """The rotary embedding according to `scaling`, the value of `key`."""
        theta = self._in_or_beside(scaling, "rope_theta", theta)
        partial = self._in_or_beside(scaling, "partial_rotary_factor", partial_rotary_factor or 1.0)
        trained = self._get("original_max_position_embeddings", 0)
        if trained != 0 and (not is_positive_number(trained) or trained > 1 << 31 or int(trained) != trained):
            raise self._wrong("original_max_position_embeddings", trained, "a positive integer")
        kind = rope_type_of(scaling)
        if kind in ROPE_TYPES and kind not in types:
            raise self._wrong("rope_type", kind, " or ".join(map(repr, types)))
        ignored = {name.partition(".")[2] for name in self._ignored if name.partition(".")[0] in _ROPE_KEYS}
        parameters, unknown = split_parameters(kind, scaling)
        if refused := {name: cause for name, cause in unknown.items() if name not in ignored}:
            raise self._refused_parameters(key, kind, refused)
        self._read.update(f"{name}.{parameter}" for name in _ROPE_KEYS for parameter in parameters)
        if trained and kind != "default":
            parameters["original_max_position_embeddings"] = trained
        if partial > 1:
            raise self._wrong("partial_rotary_factor", partial, "above 0 and at most 1")
        if partial_rotary_factor is None and partial != 1:
            raise self._wrong("partial_rotary_factor", partial, "1, since this model_type rotates whole heads")
        return make_rope(int(head_dim * partial), theta, parameters, max_position_embeddings)

    def _refused_parameters(self, key: str, kind: str, refused: Mapping[str, str]) -> AxzooError:
        reasons = "".join(f". {cause}" for cause in refused.values() if cause)
        names = shlex.join(f"{key}.{_printable(name)}" for name in refused)
        shown = ", ".join(map(_printable, refused))
        return AxzooError(
            f"{self.path}: {key} has parameters that rope_type {kind!r} does not take: {shown}{reasons}. "
            f"To pass over them as transformers does, list {names} under ignore_config_keys in the matrix or pass "
            f"--ignore_config_keys {names}"
        )

    def _in_or_beside(self, parameters: dict[str, Any], key: str, default: float) -> float:
        """A positive number, removed from `parameters` if it is there, else read from the config itself."""
        inside = parameters.pop(key, None)
        value = self.number(key, default if inside is None else inside, highest=HIGHEST_THETA)
        if inside is not None and value != inside:
            raise self._wrong(key, value, f"{inside!r}, the value in its rope parameters")
        return value

    def sliding_windows(self, layers: int, window: int | None) -> tuple[int | None, ...]:
        """One window or None per layer: from layer_types if config.json has that key, else `window` for all layers."""
        kinds = self._get("layer_types", [])
        if kinds == []:
            return (window,) * layers if window else ()
        if (
            not isinstance(kinds, list)
            or len(kinds) != layers
            or not all(kind in ("full_attention", "sliding_attention") for kind in kinds)
        ):
            raise self._wrong("layer_types", kinds, f"a list of {layers} entries, full_attention or sliding_attention")
        if "sliding_attention" in kinds and not window:
            raise self._wrong("sliding_window", window, "a length, since layer_types contains sliding_attention")
        windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
        return windows if any(windows) else ()

    def layer_flags(self, key: str, layers: int, default: Sequence[bool]) -> tuple[bool, ...]:
        """One boolean per layer, from a list of 0 and 1 that may be longer than the model. Raises AxzooError if it is
        anything else."""
        value = self._get(key, [int(flag) for flag in default])
        if (
            not isinstance(value, list)
            or len(value) < layers
            or any(type(v) is not int or v not in (0, 1) for v in value)
        ):
            raise self._wrong(key, value, f"a list of 0 and 1 with an entry for each of the {layers} layers")
        return tuple(map(bool, value[:layers]))

    def finish(self) -> None:
        """Raises AxzooError for keys that may have an effect and were neither read nor ignored by the user, and for
        ignored ones that were read."""
        if read := sorted(key for key in self._ignored & self._read if has_config_key(self._values, key)):
            raise AxzooError(
                f"{self.path}: {', '.join(read)} cannot be ignored, because the build depends on it: remove it from "
                f"ignore_config_keys"
            )
        rest = sorted(set(self._values) - self._read - self._passed_over - self._ignored)
        unknown = [key for key in rest if not has_no_effect(key, self._values)]
        if unknown:
            names = [_printable(key) for key in unknown]
            raise AxzooError(
                f"{self.path} has keys axzoo does not know: {', '.join(names)}. {causes(unknown)}They may change "
                f"what the model computes; if they do not, list them under ignore_config_keys in the matrix or pass "
                f"--ignore_config_keys {shlex.join(names)}"
            )

    def _get(self, key: str, default: Any) -> Any:
        self._read.add(key)
        value = self._values.get(key)
        if value is None:
            value = default
        if value is _REQUIRED:
            raise AxzooError(f"{self.path} has no {key}, which this model_type needs")
        return value

    def _mapping(self, key: str) -> dict[str, Any]:
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, value, "a mapping or null")
        return dict(value)

    def _wrong(self, key: str, value: Any, wanted: str) -> AxzooError:
        return AxzooError(f"{self.path}: {key} is {value!r}, but must be {wanted}")
