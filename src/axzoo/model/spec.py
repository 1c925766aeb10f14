"""The numeric description of a decoder-only language model.

A family file (`axzoo.model.families`) makes a `DecoderSpec` from config.json. The graph builder, the fp32 oracle, the
lock and the size estimates read only the spec; none of them depends on a specific family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self, get_args, get_type_hints

from axzoo.core.errors import AxzooError

Activation = Literal["silu", "gelu_new"]
NormKind = Literal["rms_norm", "layer_norm"]

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
NORM_KINDS: tuple[NormKind, ...] = get_args(NormKind)


class SpecError(AxzooError):
    """A spec this version of axzoo does not support. The message names the value, not the file it was read from."""


class UnknownFieldError(SpecError):
    """Stored data with a field this version does not have: a newer version of axzoo wrote it."""


def _require_known(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SpecError(f"{name} {value!r:.80} is not supported; supported are: {', '.join(known)}")


class FromDict:
    """Restores a frozen dataclass from its `dataclasses.asdict` dict, written by this or another version of axzoo."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The spec stored as `data`; a field that an older version did not write takes its default.

        Raises UnknownFieldError for fields this version does not have, KeyError for a missing field without default,
        TypeError when `data` or a nested spec is not a mapping, and SpecError for an unsupported value.
        """
        if not isinstance(data, Mapping):
            raise TypeError(f"{cls.__name__} is {data!r:.80}, not a mapping")
        members = {member.name: member for member in fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(repr(name) for name in data if name not in members):
            raise UnknownFieldError(
                f"{cls.__name__} has fields this version of axzoo does not know: {', '.join(unknown):.160}. "
                "A newer version wrote them: use that version"
            )
        types = get_type_hints(cls)
        values = {}
        for name, member in members.items():
            if name in data:
                values[name] = _restored(types[name], data[name])
            elif member.default is MISSING and member.default_factory is MISSING:
                raise KeyError(name)
        return cls(**values)


def _restored(wanted: Any, value: Any) -> Any:
    """A field's value from its JSON form: nested specs from mappings, tuples from lists."""
    members = [member for member in get_args(wanted) if isinstance(member, type) and issubclass(member, FromDict)]
    if members and value is not None:  # `VisionSpec | None`
        wanted = members[0]
    if isinstance(wanted, type) and issubclass(wanted, FromDict):
        return wanted.from_dict(value)
    return tuple(value) if isinstance(value, list) else value


MAX_LAYERS = 1000
"""The limit on num_hidden_layers, several times that of the largest published models."""


@dataclass(frozen=True)
class RopeSpec(FromDict):
    """Rotary position embedding of the first `rotary_dim` dimensions of each head.

    Pairs are (i, i + rotary_dim / 2), or (2i, 2i + 1) where `interleaved`. Nothing is rotated if `rotary_dim` is 0.
    `scaling` contains `rope_type` and its parameters, checked by `axzoo.model.rope.make_rope`.
    `axzoo.model.rope.frequencies` computes the frequencies.
    """

    theta: float
    rotary_dim: int
    interleaved: bool = False
    scaling: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default"})


def supported_length(rope: RopeSpec, max_position_embeddings: int) -> int:
    """The longest sequence, in tokens, that a model with this rope supports.

    `max_position_embeddings` is config.json's. For dynamic it is the training length, and for yarn it can be; the model
    then supports `factor` times that length. For the other types it is the extended length already.
    """
    if rope.scaling["rope_type"] not in ("dynamic", "yarn"):
        return max_position_embeddings
    return max(max_position_embeddings, int(rope.scaling["original_max_position_embeddings"] * rope.scaling["factor"]))


@dataclass(frozen=True)
class NormSpec(FromDict):
    """rms_norm (weight) or layer_norm (weight and bias). Raises SpecError for any other kind."""

    kind: NormKind
    eps: float

    def __post_init__(self) -> None:
        _require_known("norm", self.kind, NORM_KINDS)


@dataclass(frozen=True)
class LayerSpec(FromDict):
    """One decoder layer.

    Sequential: x += attention(input_norm(x)); x += mlp(mlp_norm(x)). Parallel: x += attention(n) + mlp(n) with
    n = input_norm(x). Both branches are multiplied by `residual_scale`, the layer's input by `input_scale`.
    The MLP is down(act(gate(x)) * up(x)), or down(act(up(x))) if not `gated`. With a `sliding_window` of w, a token
    attends to the last w tokens, itself included. `qk_norm` applies an RMS norm to every query and key head.

    Raises SpecError for a `hidden_act` that is not an Activation.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    norm: NormSpec
    rope: RopeSpec
    max_position_embeddings: int
    hidden_act: Activation = "silu"
    gated: bool = True
    parallel: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    input_scale: float = 1.0
    residual_scale: float = 1.0
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        _require_known("hidden_act", self.hidden_act, ACTIVATIONS)

    @property
    def q_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of one K or V cache row, `kv_cache_size` on the board."""
        return self.num_key_value_heads * self.head_dim


@dataclass(frozen=True)
class PostSpec(FromDict):
    """The post layer: final norm and lm_head. Logits are multiplied by `logit_scale`."""

    hidden_size: int
    vocab_size: int
    norm: NormSpec
    lm_head_bias: bool = False
    logit_scale: float = 1.0


@dataclass(frozen=True)
class VisionSpec(FromDict):
    """A tower of `num_hidden_layers` blocks on patches of `patch_size` pixels, and its resampler.

    `position_grid` is the side of the grid for which the learned positions were trained; they are interpolated for
    others. The resampler returns `query_grid` ** 2 rows of `output_size` values, from `resampler_heads` heads.
    All norms are layer norms with `eps`. The activation is the exact GELU. Large pictures are cut into at most
    `max_slice_nums` slices of about `scale_resolution` pixels square.
    """

    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    position_grid: int
    output_size: int
    query_grid: int
    resampler_heads: int
    eps: float = 1e-6
    max_slice_nums: int = 9
    scale_resolution: int = 448

    @property
    def queries(self) -> int:
        """The number of embedding rows that replace an image."""
        return self.query_grid**2

    @property
    def patch_values(self) -> int:
        """The number of values of one RGB patch."""
        return 3 * self.patch_size**2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The rows and columns of patches of an image whose sides are multiples of `patch_size`."""
        return height // self.patch_size, width // self.patch_size


@dataclass(frozen=True)
class DecoderSpec(FromDict):
    """A whole model. `layer` is what all layers share; `layer_spec(i)` describes layer i.

    `embedding_scale` multiplies the embedding rows; it is applied by layer 0. `sliding_windows` has one entry per
    layer, or is empty if no layer has a window. `rotary_layers` says for each layer whether it rotates queries and
    keys, or is empty if every layer does. `vision` is the vision model of a multimodal model.
    """

    model_type: str
    num_hidden_layers: int
    vocab_size: int
    tie_word_embeddings: bool
    layer: LayerSpec
    post: PostSpec
    embedding_scale: float = 1.0
    sliding_windows: tuple[int | None, ...] = ()
    rotary_layers: tuple[bool, ...] = ()
    vision: VisionSpec | None = None

    def layer_spec(self, index: int) -> LayerSpec:
        window = self.sliding_windows[index] if self.sliding_windows else None
        scale = self.embedding_scale if index == 0 else 1.0
        rotates = self.rotary_layers[index] if self.rotary_layers else True
        rope = self.layer.rope if rotates else replace(self.layer.rope, rotary_dim=0)
        return replace(self.layer, rope=rope, sliding_window=window, input_scale=scale)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TensorRef:
    """A checkpoint tensor by name, with the shape the spec requires. `rows` (start, stop) is a slice; None: all."""

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
