"""The forecast of one build: speed, memory, flash and download, each with an interval where it is uncertain."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from axzoo.core.errors import AxzooError
from axzoo.forecast.published import PublishedRow, nearest_rows
from axzoo.forecast.sizes import Anatomy, device_memory, embedding_bytes, flash_bytes, guard_mb, io_mb
from axzoo.forecast.speed import PCIE_CHIPS, Host, SpeedParameters, load_parameters, token_ms, ttft_ms
from axzoo.weights.formats import FORMATS
from axzoo.weights.recipe import Recipe

ASSUMED_WIDTHS = 0.25
"""What unknown widths add to the relative error of the time to first token: the spread between known models with as
many weights in a layer."""


@dataclass(frozen=True)
class Interval:
    """A value, and the bounds between which nine of ten published rows were."""

    low: float
    value: float
    high: float

    @classmethod
    def around(cls, value: float, error: float) -> Interval:
        """`error` is the logarithm of a factor."""
        return cls(value / math.exp(error), value, value * math.exp(error))


@dataclass(frozen=True)
class NpuMemory:
    """Memory of the NPU in MB: weights, KV cache, I/O buffers, and what the host's guard keeps free."""

    weights_mb: int
    kv_cache_mb: int
    io_mb: int
    guard_mb: int

    @property
    def least_mb(self) -> int:
        """What no host program can do without; `misfit` of a build compares it with the chip."""
        return self.weights_mb + self.kv_cache_mb

    @property
    def total_mb(self) -> int:
        return self.least_mb + self.io_mb + self.guard_mb


@dataclass(frozen=True)
class Forecast:
    """A build on a chip. `tok_s` and `ttft_ms` are None if no published row tells the speed of the chip.

    `fits` is "yes", "tight" if only I/O buffers and guard exceed the chip's memory, or "no". `host_memory_mb` counts
    the embedding, which is mapped from flash if the host is told so, and on PCIe hosts also the largest file while it
    is loaded. `flash_mb` is the bundle, `download_mb` the checkpoint.
    """

    chip: str
    host: Host
    recipe: Recipe
    prompt: int
    tok_s: Interval | None
    ttft_ms: Interval | None
    memory: NpuMemory
    chip_memory_mb: int
    host_memory_mb: int
    flash_mb: int
    download_mb: int
    nearest: tuple[PublishedRow, ...]

    @property
    def fits(self) -> str:
        if self.memory.least_mb > self.chip_memory_mb:
            return "no"
        return "yes" if self.memory.total_mb <= self.chip_memory_mb else "tight"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        recipe = self.recipe
        lengths = {"prefill_len": recipe.prefill_len, "last_kv_cache_len": list(recipe.last_kv_cache_len)}
        return {
            "chip": self.chip,
            "host": self.host,
            "weight_type": recipe.weight_type,
            "post_weight_type": recipe.post_weight_type,
            "kv_cache_len": recipe.kv_cache_len,
            **lengths,
            "prompt": self.prompt,
            "tok_s": None if self.tok_s is None else asdict(self.tok_s),
            "ttft_ms": None if self.ttft_ms is None else asdict(self.ttft_ms),
            "npu_memory_mb": asdict(self.memory) | {"total_mb": self.memory.total_mb, "chip_mb": self.chip_memory_mb},
            "fits": self.fits,
            "host_memory_mb": self.host_memory_mb,
            "flash_mb": self.flash_mb,
            "download_mb": self.download_mb,
            "nearest": [_published(row) for row in self.nearest],
        }


def _published(row: PublishedRow) -> dict[str, Any]:
    keys = ("model", "board", "weight_type", "prefill_len", "kv_cache_len", "tok_s", "ttft_ms", "source")
    return {key: getattr(row, key) for key in keys}


def make_forecast(
    anatomy: Anatomy, recipe: Recipe, chip: str, chip_memory_mb: int, host: Host = "onchip", prompt: int = 1
) -> Forecast:
    """The forecast of a build with `recipe`, for a prompt of `prompt` tokens.

    Raises AxzooError when the prompt does not fit the recipe, or no card has the chip.
    """
    if host == "axcl" and chip not in PCIE_CHIPS:
        raise AxzooError(f"{chip} is not sold on PCIe cards: use --chip {' or '.join(PCIE_CHIPS)}, or --host onchip")
    longest = recipe.max_prompt_len or recipe.kv_cache_len
    if not 0 < prompt <= longest:
        raise AxzooError(
            f"a prompt of {prompt} tokens exceeds the prefill groups, which end at token {longest}: shorten it, or "
            f"raise kv_cache_len {recipe.kv_cache_len} and last_kv_cache_len"
        )
    speed, memory = load_parameters(), device_memory(recipe, anatomy, anatomy.sizes)
    files = embedding_bytes(anatomy) + (_largest_file(recipe, anatomy) if host == "axcl" else 0)
    tok_s, first = _speed(speed, anatomy, recipe, chip, host, prompt)
    return Forecast(
        chip=chip,
        host=host,
        recipe=recipe,
        prompt=prompt,
        tok_s=tok_s,
        ttft_ms=first,
        memory=NpuMemory(
            weights_mb=memory.weights_mb,
            kv_cache_mb=memory.kv_cache_mb,
            io_mb=round(io_mb(anatomy, recipe)),
            guard_mb=round(guard_mb(recipe, anatomy)),
        ),
        chip_memory_mb=chip_memory_mb,
        host_memory_mb=round(files / 1e6),
        flash_mb=round(flash_bytes(recipe, anatomy) / 1e6),
        download_mb=round(2 * anatomy.checkpoint / 1e6),
        nearest=tuple(nearest_rows(anatomy, chip, host, recipe.weight_type)),
    )


def _largest_file(recipe: Recipe, anatomy: Anatomy) -> float:
    layer = FORMATS[recipe.weight_type].bytes_on_device * anatomy.layer
    return max(layer, FORMATS[recipe.post_weight_type].bytes_on_device * anatomy.post)


def _speed(
    speed: SpeedParameters, anatomy: Anatomy, recipe: Recipe, chip: str, host: Host, prompt: int
) -> tuple[Interval | None, Interval | None]:
    """tok/s and milliseconds to the first token. Float weights have not been measured consistently, so their interval
    is wider."""
    known = speed.chips.get(chip)
    if known is None:
        return None, None
    errors = {quantity: speed.errors[f"{quantity}_{host}"] for quantity in ("decode", "ttft")}
    decode = errors["decode"] if recipe.weight_type in ("s8", "s4") else max(errors["decode"], speed.float_error)
    first = errors["ttft"] + (ASSUMED_WIDTHS if anatomy.assumed else 0)
    return (
        Interval.around(1000 / token_ms(speed, known, host, anatomy, recipe), decode),
        Interval.around(ttft_ms(speed, known, host, anatomy, recipe, prompt), first),
    )
