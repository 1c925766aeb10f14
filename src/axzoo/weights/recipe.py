"""How a model is built: the numeric and shape choices of `llm_build`, apart from the model itself."""

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

WEIGHT_TYPES: tuple[WeightType, ...] = get_args(WeightType)
POST_WEIGHT_TYPES: tuple[PostWeightType, ...] = get_args(PostWeightType)
HIDDEN_STATE_TYPES: tuple[HiddenStateType, ...] = get_args(HiddenStateType)
WEIGHT_GROUP_SIZES: tuple[WeightGroupSize, ...] = get_args(WeightGroupSize)
SCALE_RULES: tuple[ScaleRule, ...] = get_args(ScaleRule)
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
INTEGER_WEIGHT_TYPES: tuple[WeightType, ...] = ("s8", "s4")

_CHOICES: dict[str, tuple[Any, ...]] = {
    "weight_type": WEIGHT_TYPES,
    "post_weight_type": POST_WEIGHT_TYPES,
    "hidden_state_type": HIDDEN_STATE_TYPES,
    "weight_group_size": WEIGHT_GROUP_SIZES,
    "scale_rule": SCALE_RULES,
    "rounding": ROUNDINGS,
}
_POST_FIELDS = ("post_weight_type", "post_topk", "ret_postnorm")


@dataclass(frozen=True)
class Recipe:
    """One way to build a model.

    `prefill_len` tokens are prefilled at once (0: decode only). `last_kv_cache_len` lists, for the prefill groups after
    the first, how many cached tokens stand before the chunk: 1, 2, ... times `prefill_len`.

    Integer weights have one scale per output row, or one per `weight_group_size` input features of it (0: the row);
    `scale_rule` chooses it and `rounding` the codes. With `post_topk` k the post layer gives the k likeliest tokens
    instead of logits; with `ret_postnorm` also the normed hidden state.

    Raises AxzooError when two of these contradict each other.
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

    def __post_init__(self) -> None:
        for key in ("prefill_len", "kv_cache_len", "post_topk"):
            if type(getattr(self, key)) is not int:
                raise AxzooError(f"recipe: {key} is {getattr(self, key)!r:.80}, but must be a whole number")
        lengths = self.last_kv_cache_len
        if not isinstance(lengths, tuple) or any(type(length) is not int for length in lengths):
            raise AxzooError(f"recipe: last_kv_cache_len is {lengths!r:.80}, but must be a list of whole numbers")
        self._check_numerics()
        self._check_lengths()

    def _check_numerics(self) -> None:
        if self.weight_type not in INTEGER_WEIGHT_TYPES:
            for key, default in (("weight_group_size", 0), ("scale_rule", "vendor"), ("rounding", "nearest")):
                if getattr(self, key) != default:
                    raise AxzooError(
                        f"{key} {getattr(self, key)} is for integer weights, and weight_type is {self.weight_type}: "
                        f"use {' or '.join(INTEGER_WEIGHT_TYPES)}, or omit {key}"
                    )
        if self.post_topk < 0:
            raise AxzooError(f"post_topk {self.post_topk} is negative: use 0 for logits")

    def _check_lengths(self) -> None:
        if self.kv_cache_len < 1:
            raise AxzooError(f"kv_cache_len {self.kv_cache_len} leaves no room for a token: it must be at least 1")
        if self.prefill_len < 0:
            raise AxzooError(f"prefill_len {self.prefill_len} is negative: use 0 for a decode-only build")
        if self.prefill_len > self.kv_cache_len + 1:
            raise AxzooError(
                f"kv_cache_len {self.kv_cache_len} does not hold a prefill of {self.prefill_len} tokens: "
                f"raise kv_cache_len to at least {self.prefill_len - 1} or lower prefill_len"
            )
        if self.last_kv_cache_len and not self.prefill_len:
            raise AxzooError("last_kv_cache_len asks for more prefill groups, but prefill_len 0 means none: give one")
        expected = tuple(self.prefill_len * p for p in range(1, len(self.last_kv_cache_len) + 1))
        if self.last_kv_cache_len != expected:
            raise AxzooError(
                f"last_kv_cache_len {list(self.last_kv_cache_len)} must be {list(expected)}: "
                f"multiples 1, 2, ... of prefill_len {self.prefill_len}"
            )
        if self.max_prompt_len > self.kv_cache_len + 1:
            raise AxzooError(
                f"kv_cache_len {self.kv_cache_len} does not fit the prefill groups, which end at token "
                f"{self.max_prompt_len}: raise kv_cache_len to at least {self.max_prompt_len - 1} "
                f"or drop the last of last_kv_cache_len"
            )

    @property
    def max_prompt_len(self) -> int:
        """Tokens the prefill groups reach together."""
        return self.prefill_len * (1 + len(self.last_kv_cache_len)) if self.prefill_len else 0

    @property
    def positions(self) -> int:
        """Positions the files compute: as many tokens as the cache holds, or the last prefill group reaches."""
        return max(self.kv_cache_len, self.max_prompt_len)

    def to_dict(self) -> dict[str, Any]:
        """Every choice as plain JSON values."""
        return {**asdict(self), "last_kv_cache_len": list(self.last_kv_cache_len)}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """The recipe of plain JSON values; choices left out have their defaults.

        Raises AxzooError when a key or a value is not one of a recipe's.
        """
        if not isinstance(data, dict):
            raise AxzooError(f"a recipe is a JSON object, not {data!r:.80}")
        unknown = sorted(data.keys() - cls.__dataclass_fields__.keys())
        if unknown:
            raise AxzooError(f"a recipe has no {unknown[0]!r}: its keys are {', '.join(cls.__dataclass_fields__)}")
        values = {**data}
        if "last_kv_cache_len" in values:
            lengths = values["last_kv_cache_len"]
            values["last_kv_cache_len"] = tuple(lengths) if isinstance(lengths, list) else lengths
        recipe = cls(**values)
        recipe._check_types()
        return recipe

    def _check_types(self) -> None:
        """Raises AxzooError for a value of the wrong type, which a file may hold."""
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed or isinstance(getattr(self, key), bool):
                wanted = " or ".join(map(repr, allowed))
                raise AxzooError(f"recipe: {key} is {getattr(self, key)!r:.80}, but must be {wanted}")
        if type(self.ret_postnorm) is not bool:
            raise AxzooError(f"recipe: ret_postnorm is {self.ret_postnorm!r:.80}, but must be true or false")

    def for_layers(self) -> dict[str, Any]:
        """What decoder layers depend on."""
        return {key: value for key, value in self.to_dict().items() if key not in _POST_FIELDS}

    def for_post(self) -> dict[str, Any]:
        """What the post layer depends on."""
        return {key: getattr(self, key) for key in (*_POST_FIELDS, "hidden_state_type")}
