"""Published measurements on boards: the data of the forecast's parameters, and the rows nearest to a forecast.

published.csv has whole models, published_calls.csv single engine calls, published_models.csv the dimensions of their
language models.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from axzoo.forecast.sizes import Anatomy
from axzoo.forecast.speed import Host
from axzoo.weights.recipe import Recipe

_FOLDER = Path(__file__).parent

UNSTATED_CACHE = 2047
"""The kv_cache_len of rows that do not state it: that of the vendor's packages of today."""

_CHIPS: dict[str, tuple[str, Host]] = {"AX8850-AXCL": ("AX650", "axcl"), "AX650-AXCLx4": ("AX650", "axcl")}
"""The chip and the host of names in published.csv that are not a chip on its own board. AX8850 is an AX650."""


@dataclass(frozen=True)
class PublishedRow:
    """A measurement of a whole model. `weight_type` is "" and numbers are None if the source does not state them.
    `anatomy` is None if the model has layers that axzoo does not describe."""

    model: str
    board: str
    chip: str
    host: Host
    weight_type: str
    prefill_len: int | None
    kv_cache_len: int | None
    ttft_ms: float | None
    tok_s: float | None
    memory_kb: float | None
    source: str
    anatomy: Anatomy | None

    @property
    def cache(self) -> int:
        return self.kv_cache_len or UNSTATED_CACHE

    @property
    def recipe(self) -> Recipe:
        """A recipe for the row's forecast. The post layer is s8 whatever the layers are."""
        weight_type = self.weight_type or "s8"
        return Recipe(weight_type=weight_type, prefill_len=self.prefill_len or 128, kv_cache_len=self.cache)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.model} {self.weight_type or '?'} on {self.board}"


@dataclass(frozen=True)
class PublishedCall:
    """A measurement of one engine call. `call` is decode, prefill or post."""

    model: str
    chip: str
    weight_type: str
    call: str
    tokens: int
    past: int
    ms: float
    source: str
    anatomy: Anatomy


@cache
def published_models() -> dict[str, Anatomy]:
    """The language models of the published measurements."""
    return {row["model"]: _anatomy(row) for row in _read("published_models.csv")}


def _anatomy(row: dict[str, str]) -> Anatomy:
    layers, hidden, inner, heads, kv_heads, head_dim, vocab, gated = (int(row[key]) for key in list(row)[1:])
    q_width, kv_width = heads * head_dim, kv_heads * head_dim
    layer = 2 * hidden * (q_width + kv_width) + (2 + gated) * hidden * inner
    post = hidden * vocab
    return Anatomy("", layers, layer, post, post, kv_width, hidden, q_width, layers * layer + post)


@cache
def published_rows() -> tuple[PublishedRow, ...]:
    """All rows of published.csv, in its order."""
    return tuple(_rows())


def _rows() -> Iterator[PublishedRow]:
    for row in _read("published.csv"):
        chip, host = _CHIPS.get(row["chip"], (row["chip"], "onchip"))
        yield PublishedRow(
            model=row["model"],
            board=row["chip"],
            chip=chip,
            host=host,
            weight_type=row["weight"],
            prefill_len=int(row["prefill_len"]) if row["prefill_len"] else None,
            kv_cache_len=int(row["kv_cache_len"]) if row["kv_cache_len"] else None,
            ttft_ms=float(row["ttft_ms"]) if row["ttft_ms"] else None,
            tok_s=float(row["tok_s"]) if row["tok_s"] else None,
            memory_kb=float(row["cmm_kb"]) if row["cmm_kb"] else None,
            source=row["source"],
            anatomy=published_models().get(row["model"]),
        )


def published_calls() -> tuple[PublishedCall, ...]:
    """All rows of published_calls.csv, in its order."""
    return tuple(
        PublishedCall(
            model=row["model"],
            chip=row["chip"],
            weight_type=row["weight"],
            call=row["call"],
            tokens=int(row["tokens"]),
            past=int(row["past"] or UNSTATED_CACHE),
            ms=float(row["ms"]),
            source=row["source"],
            anatomy=published_models()[row["model"]],
        )
        for row in _read("published_calls.csv")
    )


def nearest_rows(anatomy: Anatomy, chip: str, host: Host, weight_type: str, count: int = 2) -> list[PublishedRow]:
    """The rows of the chip whose models resemble the model most in size and shape, preferably with the same host and
    weight type."""

    def distance(row: PublishedRow) -> float:
        other = row.anatomy
        assert other is not None
        size = abs(math.log(other.num_hidden_layers * other.layer / anatomy.num_hidden_layers / anatomy.layer))
        shape = abs(math.log(other.layer / anatomy.layer)) / 4 + abs(math.log(other.post / anatomy.post)) / 4
        return size + shape + 0.5 * (row.host != host) + 0.5 * (row.weight_type != weight_type)

    rows = [row for row in published_rows() if row.chip == chip and row.anatomy is not None and row.tok_s]
    return sorted(rows, key=distance)[:count]


def _read(name: str) -> list[dict[str, str]]:
    with (_FOLDER / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
