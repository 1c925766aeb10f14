"""Reading config.json so that nothing in it is passed over.

Every key must be read by the family, be known to have no effect on the numbers, or be vouched for by the user; a key
nobody knows is refused, because it may change what the model computes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.model.rope import ROPE_TYPES, is_positive_number, make_rope
from axzoo.model.spec import RopeSpec

WITHOUT_EFFECT = frozenset({
    "_attn_implementation", "_name_or_path", "architectures", "attention_dropout", "auto_map", "bos_token_id",
    "chunk_size_feed_forward", "dtype", "embd_pdrop", "eos_token_id", "hidden_dropout", "id2label",
    "initializer_range", "is_llama_config", "label2id", "max_length", "model_type", "output_attentions",
    "output_hidden_states", "pad_token_id", "problem_type", "quantization_config", "resid_pdrop", "return_dict",
    "torch_dtype", "transformers.js_config", "transformers_version", "unsloth_version", "use_cache",
})  # fmt: skip
"""Keys about training, tokens, dtypes on disk or software, which change nothing a decoder layer computes."""

_REQUIRED: Any = object()


class ConfigView:
    """A config.json whose reads are recorded."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self._values = values
        self._read: set[str] = set()
        self.path = path

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A positive number. Raises AxzooError when absent (without default) or of another type."""
        value = self._get(key, default)
        if not is_positive_number(value):
            raise self._wrong(key, value, "a positive number")
        return float(value)

    def size(self, key: str, default: Any = _REQUIRED) -> int:
        """A positive integer below 2**31. Raises AxzooError otherwise."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
            raise self._wrong(key, value, "a positive integer")
        return value

    def length(self, key: str) -> int | None:
        """A positive integer, or None where the key is absent, null or 0. Raises AxzooError otherwise."""
        return self.whole(key, 0) or None

    def whole(self, key: str, default: Any = _REQUIRED) -> int:
        """An integer of 0 or more, below 2**31. Raises AxzooError otherwise."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
            raise self._wrong(key, value, "an integer of 0 or more")
        return value

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        """true or false. Raises AxzooError otherwise."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def choice(self, key: str, allowed: Collection[Any], default: Any = _REQUIRED) -> Any:
        """One of `allowed`. Raises AxzooError otherwise."""
        value = self._get(key, default)
        if value not in list(allowed):
            raise self._wrong(key, value, " or ".join(repr(item) for item in allowed))
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """A text. Raises AxzooError otherwise."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "text")
        return value

    def heads(self) -> tuple[int, int]:
        """num_attention_heads and num_key_value_heads (by default as many).

        Raises AxzooError when the query heads do not divide evenly among the key/value heads.
        """
        heads = self.size("num_attention_heads")
        kv_heads = self.size("num_key_value_heads", heads)
        if heads % kv_heads:
            raise self._wrong("num_attention_heads", heads, f"a multiple of num_key_value_heads, {kv_heads}")
        return heads, kv_heads

    def ignore(self, *keys: str) -> None:
        """Takes note of keys the family knows to have no effect."""
        self._read.update(keys)

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def rope(
        self,
        head_dim: int,
        max_position_embeddings: int,
        partial_rotary_factor: float | None = None,
        types: Collection[str] = ROPE_TYPES,
    ) -> RopeSpec:
        """The rotary embedding, from either generation of keys.

        `partial_rotary_factor` is the family's default; None where the family turns whole heads and reads no such key.
        `types` are the kinds of scaling the family can have.
        Until transformers 4: rope_theta, rope_scaling (null, or {"rope_type" or "type": ...}) and
        partial_rotary_factor. Since 5: rope_parameters {"rope_theta": ..., "rope_type": ..., ...}. The trained length
        stands beside the parameters, or among them.

        Raises AxzooError for what `axzoo.model.rope.make_rope` refuses, and when theta or
        the partial factor are said twice and differently.
        """
        scaling = self._mapping("rope_parameters") or self._mapping("rope_scaling")
        theta = self._in_or_beside(scaling, "rope_theta", 10000.0)
        partial = self._in_or_beside(scaling, "partial_rotary_factor", partial_rotary_factor or 1.0)
        trained = self._get("original_max_position_embeddings", 0)
        kind = scaling.pop("type", "default")
        scaling.setdefault("rope_type", kind)
        if scaling["rope_type"] in ROPE_TYPES and scaling["rope_type"] not in types:
            raise self._wrong("rope_type", scaling["rope_type"], " or ".join(map(repr, types)))
        if trained and scaling["rope_type"] != "default":
            scaling["original_max_position_embeddings"] = trained
        if partial > 1:
            raise self._wrong("partial_rotary_factor", partial, "above 0 and at most 1")
        if partial_rotary_factor is None and partial != 1:
            raise self._wrong("partial_rotary_factor", partial, "1, since this model_type turns whole heads")
        return make_rope(int(head_dim * partial), theta, scaling, max_position_embeddings)

    def _in_or_beside(self, parameters: dict[str, Any], key: str, default: float) -> float:
        """A positive number out of `parameters`, which it leaves, or of the config itself."""
        inside = parameters.pop(key, None)
        value = self.number(key, default if inside is None else inside)
        if inside is not None and value != inside:
            raise self._wrong(key, value, f"{inside!r}, as its rope parameters say")
        return value

    def sliding_windows(self, layers: int, window: int | None) -> tuple[int | None, ...]:
        """One window (or None) per layer, from layer_types where config.json has it, else `window` for all."""
        kinds = self._get("layer_types", [])
        if not kinds:
            return (window,) * layers if window else ()
        if (
            not isinstance(kinds, list)
            or len(kinds) != layers
            or not all(kind in ("full_attention", "sliding_attention") for kind in kinds)
        ):
            raise self._wrong("layer_types", kinds, f"a list of {layers} times full_attention or sliding_attention")
        if "sliding_attention" in kinds and not window:
            raise self._wrong("sliding_window", window, "a length, since layer_types has sliding_attention")
        windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
        return windows if any(windows) else ()

    def finish(self, vouched: Collection[str] = ()) -> None:
        """Raises AxzooError for keys that nobody read, and for those that are vouched for although they were."""
        if read := sorted(set(vouched) & self._read & self._values.keys()):
            raise AxzooError(
                f"{self.path}: {', '.join(read)} cannot be ignored, for axzoo builds by it: leave it out of "
                f"ignore_config_keys"
            )
        unknown = sorted(set(self._values) - self._read - WITHOUT_EFFECT - set(vouched))
        if unknown:
            raise AxzooError(
                f"{self.path} has keys axzoo does not know: {', '.join(unknown)}. They may change what the model "
                f"computes; if they do not, vouch for them: ignore_config_keys in a matrix, or --ignore_config_keys"
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
