"""What a decoder-only language model is, in numbers: the one description all consumers share.

A family file (`axzoo.families`) makes a `DecoderSpec` from config.json. The graph builder, the fp32 oracle, the lock
and the size estimates read the spec; none of them knows a family's name.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Self, get_type_hints


class _FromDict:
    """Reads a frozen dataclass back from the plain dict `dataclasses.asdict` made of it."""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        types = get_type_hints(cls)
        values = {}
        for field in fields(cls):  # type: ignore[arg-type]
            value, wanted = data[field.name], types[field.name]
            if isinstance(wanted, type) and issubclass(wanted, _FromDict):
                value = wanted.from_dict(value)
            elif isinstance(value, list):
                value = tuple(value)
            values[field.name] = value
        return cls(**values)


@dataclass(frozen=True)
class RopeSpec(_FromDict):
    """Rotary position embedding: one angular frequency (radians per position) for each rotated pair.

    The family has applied rope_scaling to the powers of `theta`; `len(inv_freq) * 2` dimensions of each head are
    rotated. `attention_factor` scales cos and sin (YaRN, LongRoPE; 1.0 otherwise).
    """

    theta: float
    inv_freq: tuple[float, ...]
    attention_factor: float = 1.0


@dataclass(frozen=True)
class LayerSpec(_FromDict):
    """One decoder layer: norm, attention, residual, norm, gated MLP, residual."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    hidden_act: str
    attention_bias: bool
    mlp_bias: bool
    rope: RopeSpec
    max_position_embeddings: int

    @property
    def q_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of one K or V cache row: the board's `kv_cache_size`."""
        return self.num_key_value_heads * self.head_dim


@dataclass(frozen=True)
class PostSpec(_FromDict):
    """The post layer: final norm and lm_head."""

    hidden_size: int
    vocab_size: int
    rms_norm_eps: float


@dataclass(frozen=True)
class DecoderSpec(_FromDict):
    """A whole model."""

    model_type: str
    num_hidden_layers: int
    vocab_size: int
    tie_word_embeddings: bool
    layer: LayerSpec
    post: PostSpec

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
