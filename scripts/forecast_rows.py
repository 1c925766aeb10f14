"""Which published measurements the fit of `axzoo forecast` uses, and what each observes.

The rules that leave rows out look at the data, never at a forecast.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from axzoo.forecast.published import PublishedCall, PublishedRow, published_calls, published_rows
from axzoo.forecast.sizes import Anatomy
from axzoo.forecast.speed import SpeedParameters, decode_call_ms, post_call_ms, prefill_call_ms, token_ms, ttft_ms

DISAGREEMENT = 0.15
"""Rows with the same shape, chip, host, weights and cache contradict each other if one is farther from their median."""

PCIE_CALL_MS = 0.457
"""The least time of a call over PCIe, as measured by a third party."""

DOMINANCE = 0.75
"""A call that is larger than another in every respect, but takes less than this share of its time, contradicts it."""


# Rules


def left_out_rows() -> dict[int, str]:
    """The rows that the fit does not use, by index, with the rule that leaves each out."""
    rows = published_rows()
    reasons: dict[int, str] = {}
    for rule in (_not_described, _contradicting, _faster_than_possible):
        kept = [(index, row) for index, row in enumerate(rows) if index not in reasons]
        reasons |= rule(kept)
    return reasons


def _not_described(rows: Sequence[tuple[int, PublishedRow]]) -> dict[int, str]:
    """Rows of something that the forecast does not describe."""
    models_of: dict[str, set[str]] = defaultdict(set)
    for _, row in rows:
        models_of[row.board].add(row.model)
    reasons = {}
    for index, row in rows:
        if row.anatomy is None:
            reasons[index] = "layers that axzoo does not describe (linear attention)"
        elif re.search(r"x\d+$", row.board):
            reasons[index] = "several cards"
        elif len(models_of[row.board]) == 1:
            reasons[index] = f"the only model on {row.board}"
        elif "own llama.cpp backend" in row.source:
            reasons[index] = "another host program than the vendor's"
        elif not row.weight_type:
            reasons[index] = "weight type not stated"
        elif row.weight_type == "bf16" and "Pulsar2 3" in row.source:
            reasons[index] = "float weights of a compiler that stored them in 2 bytes; today's stores 4"
    return reasons


def _contradicting(rows: Sequence[tuple[int, PublishedRow]]) -> dict[int, str]:
    """Of rows that measure the same thing, those that are far from their median: all of them if they are two."""
    reasons = {}
    groups: dict[Any, list[tuple[int, PublishedRow]]] = defaultdict(list)
    for index, row in rows:
        groups[shape_of(row.anatomy), row.chip, row.host, row.weight_type, row.cache].append((index, row))
    for group in groups.values():
        speeds = [row.tok_s for _, row in group if row.tok_s]
        for index, row in group:
            if row.tok_s and abs(row.tok_s / median(speeds) - 1) > DISAGREEMENT:
                reasons[index] = f"contradicts rows with the same shape, whose median is {median(speeds):.1f} tok/s"
    return reasons


def _faster_than_possible(rows: Sequence[tuple[int, PublishedRow]]) -> dict[int, str]:
    """Rows over PCIe that are faster than a row of the same shape on the chip's own board plus PCIe's time per call."""
    reasons = {}
    for index, row in rows:
        if row.host != "axcl" or not row.tok_s or row.anatomy is None:
            continue
        own = [
            other.tok_s
            for _, other in rows
            if other.host == "onchip"
            and (other.chip, other.weight_type) == (row.chip, row.weight_type)
            and shape_of(other.anatomy) == shape_of(row.anatomy)
            and other.tok_s
        ]
        least = 1000 / max(own) + PCIE_CALL_MS * (row.anatomy.num_hidden_layers + 1) if own else 0
        if 1000 / row.tok_s < least:
            reasons[index] = f"over PCIe at most {1000 / least:.1f} tok/s, from {max(own)} on the board itself"
    return reasons


def without_ttft(row: PublishedRow) -> str | None:
    """Why a row's time to first token is not used; None if it is."""
    if row.prefill_len is None:
        return "prefill_len not stated"
    if "prompt" in row.source or "video" in row.model:
        return "the prompt is not one group of prefill_len tokens"
    return None


def left_out_calls() -> dict[int, str]:
    """The prefill calls that the fit does not use: of two models with contradicting calls, the one with fewer calls."""
    calls = [(index, call) for index, call in enumerate(published_calls()) if call.call == "prefill"]
    number = Counter((call.model, call.chip) for _, call in calls)
    losers = {
        (loser.model, loser.chip)
        for (_, large), (_, small) in itertools.permutations(calls, 2)
        if large.chip == small.chip and _dominates(large, small) and large.ms < DOMINANCE * small.ms
        for loser in [min((large, small), key=lambda call: number[call.model, call.chip])]
    }
    reason = f"a larger call that takes less than {DOMINANCE:.0%} of a smaller one's time"
    return {index: reason for index, call in calls if (call.model, call.chip) in losers}


def _dominates(large: PublishedCall, small: PublishedCall) -> bool:
    def measures(call: PublishedCall) -> tuple[int, ...]:
        return call.anatomy.layer, call.anatomy.q_width, call.anatomy.hidden_size, call.tokens, call.past

    return all(a >= b for a, b in zip(measures(large), measures(small), strict=True))


def shape_of(anatomy: Anatomy | None) -> tuple[int, ...] | None:
    """What identifies a model's shape: fine-tunes and vision models around the same language model share it."""
    if anatomy is None:
        return None
    return anatomy.num_hidden_layers, anatomy.layer, anatomy.hidden_size, anatomy.q_width, anatomy.kv_width


# Observations


@dataclass(frozen=True)
class Observation:
    """A published time, and how the model computes it. Observations of the same `group` weigh as much as one."""

    name: str
    shape: tuple[int, ...] | None
    group: tuple[Any, ...]
    ms: float
    forecast: Callable[[SpeedParameters], float]
    row: int | None = None


def decode_observations() -> list[Observation]:
    """Decoded tokens of whole models, decode calls and calls of post layers."""
    out, found = left_out_rows(), []
    for index, row in enumerate(published_rows()):
        if index not in out and row.tok_s:
            found.append(token(index, row))
    for call in published_calls():
        if call.call == "decode":
            found.append(
                _observed(call, lambda s, c: decode_call_ms(s, s.chips[c.chip], c.anatomy, c.weight_type, c.past, 2))
            )
        elif call.call == "post":
            found.append(_observed(call, lambda s, c: post_call_ms(s, s.chips[c.chip], c.anatomy, "s8")))
    return found


def token(index: int, row: PublishedRow) -> Observation:
    anatomy = row.anatomy
    assert anatomy is not None and row.tok_s
    group = ("token", shape_of(anatomy), row.board, row.weight_type)
    return Observation(
        str(row),
        shape_of(anatomy),
        group,
        1000 / row.tok_s,
        lambda s: token_ms(s, s.chips[row.chip], row.host, anatomy, row.recipe),
        index,
    )


def ttft_observations() -> list[Observation]:
    """Times to first token of whole models, and prefill calls."""
    out, calls_out, found = left_out_rows(), left_out_calls(), []
    for index, row in enumerate(published_rows()):
        if index not in out and row.ttft_ms and without_ttft(row) is None:
            found.append(first_token(index, row))
    for index, call in enumerate(published_calls()):
        if call.call == "prefill" and index not in calls_out:
            found.append(_observed(call, lambda s, c: prefill_call_ms(s, s.chips[c.chip], c.anatomy, c.tokens, c.past)))
    return found


def first_token(index: int, row: PublishedRow) -> Observation:
    anatomy, prompt = row.anatomy, row.prefill_len or 128
    assert anatomy is not None and row.ttft_ms
    group = ("ttft", shape_of(anatomy), row.board, row.prefill_len)
    return Observation(
        f"{row} p{prompt}",
        shape_of(anatomy),
        group,
        row.ttft_ms,
        lambda s: ttft_ms(s, s.chips[row.chip], row.host, anatomy, row.recipe, prompt),
        index,
    )


def _observed(call: PublishedCall, forecast: Callable[[SpeedParameters, PublishedCall], float]) -> Observation:
    group = (call.call, call.model, call.chip) + ((call.weight_type, call.past) if call.call == "decode" else ())
    name = f"{call.model} {call.weight_type} on {call.chip}, {call.call} call"
    return Observation(name, shape_of(call.anatomy), group, call.ms, lambda s: forecast(s, call))
