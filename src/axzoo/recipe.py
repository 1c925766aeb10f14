"""How a model is built: the numeric and shape choices of `llm_build`, apart from the model itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from axzoo.errors import AxzooError

WeightType = Literal["fp32", "fp16", "bf16", "s8"]
PostWeightType = Literal["bf16", "s8", "fp32"]
HiddenStateType = Literal["fp32", "fp16", "bf16"]

WEIGHT_TYPES: tuple[WeightType, ...] = get_args(WeightType)
POST_WEIGHT_TYPES: tuple[PostWeightType, ...] = get_args(PostWeightType)
HIDDEN_STATE_TYPES: tuple[HiddenStateType, ...] = get_args(HiddenStateType)

_SHORT = {"fp32": "32", "fp16": "16f", "bf16": "16", "s8": "8"}


@dataclass(frozen=True)
class Recipe:
    """One way to build a model.

    `prefill_len` tokens are prefilled at once (0: decode only). `last_kv_cache_len` lists, for the prefill groups after
    the first, how many cached tokens stand before the chunk: 1, 2, ... times `prefill_len`.

    Raises AxzooError when the lengths contradict each other.
    """

    weight_type: WeightType = "s8"
    post_weight_type: PostWeightType = "s8"
    hidden_state_type: HiddenStateType = "bf16"
    prefill_len: int = 128
    kv_cache_len: int = 1023
    last_kv_cache_len: tuple[int, ...] = ()

    def __post_init__(self) -> None:
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
        """Length of the longest sequence the files hold."""
        return max(self.kv_cache_len + 1, self.max_prompt_len)

    def for_layers(self) -> dict[str, Any]:
        """What decoder layers depend on."""
        return {key: value for key, value in asdict(self).items() if key != "post_weight_type"}

    def for_post(self) -> dict[str, Any]:
        """What the post layer depends on."""
        return {"post_weight_type": self.post_weight_type, "hidden_state_type": self.hidden_state_type}

    @property
    def tag(self) -> str:
        """The build's short name, as on model cards: w8a16. 16 is bf16; fp16 is 16f."""
        return f"w{_SHORT[self.weight_type]}a{_SHORT[self.hidden_state_type]}"
