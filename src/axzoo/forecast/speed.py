"""The speed of a model on a board: milliseconds per engine call, from bytes to read and products to compute.

docs/forecast.md explains every parameter. parameters.json is written by scripts/fit_forecast.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from axzoo.forecast.sizes import Anatomy
from axzoo.weights.formats import FORMATS
from axzoo.weights.recipe import Recipe

Host = Literal["onchip", "axcl"]
HOSTS: tuple[Host, ...] = get_args(Host)
"""Where the host program runs: on the board's own processor, or on another computer that reaches the chip over PCIe."""

PCIE_CHIPS = ("AX650",)
"""The chips that are sold on cards. Their name on a card is AX8850."""

PARAMETERS = Path(__file__).with_name("parameters.json")

_FLOATS = ("fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2")


@dataclass(frozen=True)
class ChipSpeed:
    """What a chip does per second.

    `bandwidth` in GB/s: s8 weights and KV cache read while a token is decoded. `s4_bytes`: bytes of s8 weights that
    take as long as one s4 weight. `compute` in 10^12 operations per second: products with weights in prefill.
    `attention_us`: the attention of 128 tokens to 128 tokens, for 64 query dimensions.
    """

    bandwidth: float
    s4_bytes: float
    compute: float
    attention_us: float


@dataclass(frozen=True)
class SpeedParameters:
    """The fitted parameters.

    `call_ms` is the fixed time of an engine call, `pcie_call_ms` what PCIe and a slow host add to it. `float_bytes`:
    bytes of s8 weights that take as long as one float weight. `copy_ms`: the host's time for 128 tokens of 1024 values
    between two prefill calls. `errors` are the relative errors, by quantity and host, that 90 % of the published rows
    stay below when their model is left out of the fit; `float_error` applies to float weights instead.
    """

    chips: Mapping[str, ChipSpeed]
    call_ms: float
    pcie_call_ms: float
    float_bytes: float
    copy_ms: float
    errors: Mapping[str, float]
    float_error: float

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SpeedParameters:
        """The parameters as parameters.json stores them."""
        chips = {name: ChipSpeed(**values) for name, values in data["chips"].items()}
        return cls(**{**data, "chips": chips})


@cache
def load_parameters() -> SpeedParameters:
    """The parameters in the package."""
    return SpeedParameters.from_dict(json.loads(PARAMETERS.read_text(encoding="utf-8")))


def weight_bytes(speed: SpeedParameters, chip: ChipSpeed, weight_type: str) -> float:
    """How many bytes of s8 weights take as long as one weight of this type while a token is decoded."""
    if weight_type in _FLOATS:
        return speed.float_bytes
    return chip.s4_bytes if weight_type == "s4" else FORMATS[weight_type].bytes_stored


def decode_call_ms(
    speed: SpeedParameters, chip: ChipSpeed, anatomy: Anatomy, weight_type: str, kv_cache_len: int, state_bytes: float
) -> float:
    """One layer's call for one token. The chip reads the whole KV cache, however little of it is in use."""
    cache_bytes = 2 * anatomy.kv_width * kv_cache_len * state_bytes
    read = weight_bytes(speed, chip, weight_type) * anatomy.layer + cache_bytes
    return speed.call_ms + read / chip.bandwidth / 1e6


def post_call_ms(speed: SpeedParameters, chip: ChipSpeed, anatomy: Anatomy, weight_type: str) -> float:
    """The post layer's call for one token."""
    return speed.call_ms + weight_bytes(speed, chip, weight_type) * anatomy.post / chip.bandwidth / 1e6


def prefill_call_ms(speed: SpeedParameters, chip: ChipSpeed, anatomy: Anatomy, tokens: int, past: int) -> float:
    """One layer's call for a group of `tokens` tokens after `past` cached ones. A group that is only partly filled
    takes as long. The weight type hardly matters, because computing takes longer than reading."""
    blocks = tokens / 128
    products = 2 * anatomy.layer * tokens / chip.compute / 1e9
    attention = chip.attention_us / 1e3 * anatomy.q_width / 64 * blocks * (past + tokens) / 128
    copies = speed.copy_ms * anatomy.hidden_size / 1024 * blocks
    return speed.call_ms + products + attention + copies


def _host_ms(speed: SpeedParameters, host: Host, anatomy: Anatomy) -> float:
    """What the host adds to one pass through all layers and the post layer."""
    return speed.pcie_call_ms * (anatomy.num_hidden_layers + 1) if host == "axcl" else 0.0


def token_ms(speed: SpeedParameters, chip: ChipSpeed, host: Host, anatomy: Anatomy, recipe: Recipe) -> float:
    """The time of one decoded token."""
    state = FORMATS[recipe.hidden_state_type].bytes_stored
    layer = decode_call_ms(speed, chip, anatomy, recipe.weight_type, recipe.kv_cache_len, state)
    post = post_call_ms(speed, chip, anatomy, recipe.post_weight_type)
    return anatomy.num_hidden_layers * layer + post + _host_ms(speed, host, anatomy)


def ttft_ms(
    speed: SpeedParameters, chip: ChipSpeed, host: Host, anatomy: Anatomy, recipe: Recipe, prompt: int
) -> float:
    """The time from a prompt of `prompt` tokens to the first token of the answer: the prefill groups that it fills, and
    one call of the post layer. Without prefill groups, every token of the prompt is decoded."""
    if not recipe.prefill_len:
        return prompt * token_ms(speed, chip, host, anatomy, recipe)
    groups = range(math.ceil(prompt / recipe.prefill_len))
    calls = [prefill_call_ms(speed, chip, anatomy, recipe.prefill_len, group * recipe.prefill_len) for group in groups]
    host_ms = len(calls) * _host_ms(speed, host, anatomy)
    return (
        anatomy.num_hidden_layers * sum(calls) + post_call_ms(speed, chip, anatomy, recipe.post_weight_type) + host_ms
    )
