"""The recipe: the numeric formats and shapes with which a model is built."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from axzoo.core.errors import AxzooError

WeightType = Literal["fp32", "fp16", "bf16", "s8", "s4"]
PostWeightType = Literal["bf16", "s8", "fp32", "fp8_e5m2", "fp8_e4m3"]
HiddenStateType = Literal["fp32", "fp16", "bf16"]
WeightGroupSize = Literal[0, 32, 64, 128]
ScaleRule = Literal["vendor", "mse"]
Rounding = Literal["nearest", "gptq"]
EmbeddingScale = Literal["graph", "host"]

WEIGHT_TYPES: tuple[WeightType, ...] = get_args(WeightType)
POST_WEIGHT_TYPES: tuple[PostWeightType, ...] = get_args(PostWeightType)
HIDDEN_STATE_TYPES: tuple[HiddenStateType, ...] = get_args(HiddenStateType)
WEIGHT_GROUP_SIZES: tuple[WeightGroupSize, ...] = get_args(WeightGroupSize)
SCALE_RULES: tuple[ScaleRule, ...] = get_args(ScaleRule)
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
EMBEDDING_SCALES: tuple[EmbeddingScale, ...] = get_args(EmbeddingScale)
INTEGER_WEIGHT_TYPES: tuple[WeightType, ...] = ("s8", "s4")

_CHOICES: dict[str, tuple[Any, ...]] = {
    "weight_type": WEIGHT_TYPES,
    "post_weight_type": POST_WEIGHT_TYPES,
    "hidden_state_type": HIDDEN_STATE_TYPES,
    "weight_group_size": WEIGHT_GROUP_SIZES,
    "scale_rule": SCALE_RULES,
    "rounding": ROUNDINGS,
    "embedding_scale": EMBEDDING_SCALES,
}
_POST_FIELDS = ("post_weight_type", "post_topk", "ret_postnorm")
_VISION_FIELDS = ("image_size", "image_slices", "vpm_two_stage")


@dataclass(frozen=True)
class Recipe:
    """The numeric formats and shapes of a build.

    `prefill_len` is the number of tokens per prefill chunk (0: decode only). `last_kv_cache_len` lists the number of
    cached tokens before each prefill chunk after the first: 1, 2, ... times `prefill_len`.

    Integer weights have one scale per `weight_group_size` input features of an output row (0: one per row).
    `scale_rule` chooses the scales, `rounding` the integers. If `post_topk` is k > 0, the post layer outputs the k most
    probable tokens instead of logits. With `ret_postnorm` it also outputs the normalized hidden state.

    `embedding_scale` says who multiplies the embedding rows of a model that scales them: layer 0, or the host program.
    A vision model takes images of `image_size` pixels square, with `image_slices` also the sizes into which large
    pictures are cut. With `vpm_two_stage` its tower and its resampler are two files.

    Raises AxzooError when the fields contradict each other.
    """

    weight_type: WeightType = "s8"
    post_weight_type: PostWeightType = "s8"
    hidden_state_type: HiddenStateType = "bf16"
    prefill_len: int = 128
    kv_cache_len: int = 1023
    last_kv_cache_len: tuple[int, ...] = ()
    weight_group_size: WeightGroupSize = 0
    scale_rule: ScaleRule = "vendor"
    rounding: Rounding = "nearest"
    post_topk: int = 0
    ret_postnorm: bool = False
    embedding_scale: EmbeddingScale = "graph"
    image_size: int = 280
    image_slices: bool = False
    vpm_two_stage: bool = False

    def __post_init__(self) -> None:
        for key in ("prefill_len", "kv_cache_len", "post_topk", "image_size"):
            if type(getattr(self, key)) is not int:
                raise AxzooError(f"recipe: {key} is {getattr(self, key)!r:.80}, but must be an integer")
        lengths = self.last_kv_cache_len
        if not isinstance(lengths, tuple) or any(type(length) is not int for length in lengths):
            raise AxzooError(f"recipe: last_kv_cache_len is {lengths!r:.80}, but must be a list of integers")
        self._check_numerics()
        self._check_lengths()

    def _check_numerics(self) -> None:
        if self.weight_type not in INTEGER_WEIGHT_TYPES:
            for key, default in (("weight_group_size", 0), ("scale_rule", "vendor"), ("rounding", "nearest")):
                if getattr(self, key) != default:
                    raise AxzooError(
                        f"{key} {getattr(self, key)} requires integer weights, but weight_type is {self.weight_type}: "
                        f"use {' or '.join(INTEGER_WEIGHT_TYPES)}, or omit {key}"
                    )
        if self.post_topk < 0:
            raise AxzooError(f"post_topk {self.post_topk} is negative: use 0 for logits")

    def _check_lengths(self) -> None:
        if self.kv_cache_len < 1:
            raise AxzooError(f"kv_cache_len {self.kv_cache_len} is too small: it must be at least 1")
        if self.prefill_len < 0:
            raise AxzooError(f"prefill_len {self.prefill_len} is negative: use 0 for a decode-only build")
        if self.prefill_len > self.kv_cache_len + 1:
            raise AxzooError(
                f"kv_cache_len {self.kv_cache_len} is too small for a prefill of {self.prefill_len} tokens: "
                f"raise kv_cache_len to at least {self.prefill_len - 1} or lower prefill_len"
            )
        if self.last_kv_cache_len and not self.prefill_len:
            raise AxzooError(
                "last_kv_cache_len requires prefill groups, but prefill_len is 0: raise it or omit last_kv_cache_len"
            )
        expected = tuple(self.prefill_len * p for p in range(1, len(self.last_kv_cache_len) + 1))
        if self.last_kv_cache_len != expected:
            raise AxzooError(
                f"last_kv_cache_len {list(self.last_kv_cache_len)} must be {list(expected)}: "
                f"multiples 1, 2, ... of prefill_len {self.prefill_len}"
            )
        if self.max_prompt_len > self.kv_cache_len + 1:
            raise AxzooError(
                f"kv_cache_len {self.kv_cache_len} is too small for the prefill groups, which end at token "
                f"{self.max_prompt_len}: raise kv_cache_len to at least {self.max_prompt_len - 1} "
                f"or remove the last value of last_kv_cache_len"
            )

    @property
    def max_prompt_len(self) -> int:
        """The number of tokens that all prefill groups together can process; 0 if there are none."""
        return self.prefill_len * (1 + len(self.last_kv_cache_len)) if self.prefill_len else 0

    @property
    def positions(self) -> int:
        """The number of positions that the files support: kv_cache_len, or max_prompt_len if it is larger."""
        return max(self.kv_cache_len, self.max_prompt_len)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return {**asdict(self), "last_kv_cache_len": list(self.last_kv_cache_len)}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """The recipe from plain JSON values. Missing fields have their defaults.

        Raises AxzooError when a key is unknown or a value is not valid.
        """
        if not isinstance(data, dict):
            raise AxzooError(f"a recipe must be a JSON object, not {data!r:.80}")
        unknown = sorted(data.keys() - cls.__dataclass_fields__.keys())
        if unknown:
            raise AxzooError(f"recipe: unknown key {unknown[0]!r}: use one of {', '.join(cls.__dataclass_fields__)}")
        values = {**data}
        if "last_kv_cache_len" in values:
            lengths = values["last_kv_cache_len"]
            values["last_kv_cache_len"] = tuple(lengths) if isinstance(lengths, list) else lengths
        recipe = cls(**values)
        recipe._check_types()
        return recipe

    def _check_types(self) -> None:
        """Raises AxzooError when a value that was read from a file is not allowed."""
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed or isinstance(getattr(self, key), bool):
                expected = " or ".join(map(repr, allowed))
                raise AxzooError(f"recipe: {key} is {getattr(self, key)!r:.80}, but must be {expected}")
        for key in ("ret_postnorm", "image_slices", "vpm_two_stage"):
            if type(getattr(self, key)) is not bool:
                raise AxzooError(f"recipe: {key} is {getattr(self, key)!r:.80}, but must be true or false")

    def for_layers(self) -> dict[str, Any]:
        """The fields that decoder layers depend on."""
        others = _POST_FIELDS + _VISION_FIELDS + (("embedding_scale",) if self.embedding_scale == "graph" else ())
        return {key: value for key, value in self.to_dict().items() if key not in others}

    def for_vision(self) -> dict[str, Any]:
        """The fields that the vision model depends on."""
        storage = ("weight_type", "hidden_state_type", "weight_group_size", "scale_rule")
        return {key: getattr(self, key) for key in (*storage, *_VISION_FIELDS)}

    def for_post(self) -> dict[str, Any]:
        """The fields that the post layer depends on."""
        return {key: getattr(self, key) for key in (*_POST_FIELDS, "hidden_state_type")}
