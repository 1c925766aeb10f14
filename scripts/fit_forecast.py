"""Fits the parameters of `axzoo forecast` to published measurements, and judges them with each model left out.

    python scripts/fit_forecast.py                    # prints rules, rows left out, errors
    python scripts/fit_forecast.py --write            # also writes parameters.json and docs/forecast.svg

The data are the CSV files in src/axzoo/forecast. The rules that leave rows out are functions of this file; they look at
the data, never at a forecast.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from axzoo.forecast.published import PublishedCall, PublishedRow, published_calls, published_rows
from axzoo.forecast.sizes import Anatomy
from axzoo.forecast.speed import (
    PARAMETERS,
    SpeedParameters,
    decode_call_ms,
    post_call_ms,
    prefill_call_ms,
    token_ms,
    ttft_ms,
)

PLOT = Path(__file__).parents[1] / "docs" / "forecast.svg"

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
        groups[_shape(row.anatomy), row.chip, row.host, row.weight_type, row.cache].append((index, row))
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
            and _shape(other.anatomy) == _shape(row.anatomy)
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


def _shape(anatomy: Anatomy | None) -> tuple[int, ...] | None:
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
            found.append(_token(index, row))
    for call in published_calls():
        if call.call == "decode":
            found.append(
                _observed(call, lambda s, c: decode_call_ms(s, s.chips[c.chip], c.anatomy, c.weight_type, c.past, 2))
            )
        elif call.call == "post":
            found.append(_observed(call, lambda s, c: post_call_ms(s, s.chips[c.chip], c.anatomy, "s8")))
    return found


def _token(index: int, row: PublishedRow) -> Observation:
    anatomy = row.anatomy
    assert anatomy is not None and row.tok_s
    group = ("token", _shape(anatomy), row.board, row.weight_type)
    return Observation(
        str(row),
        _shape(anatomy),
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
            found.append(_first_token(index, row))
    for index, call in enumerate(published_calls()):
        if call.call == "prefill" and index not in calls_out:
            found.append(_observed(call, lambda s, c: prefill_call_ms(s, s.chips[c.chip], c.anatomy, c.tokens, c.past)))
    return found


def _first_token(index: int, row: PublishedRow) -> Observation:
    anatomy, prompt = row.anatomy, row.prefill_len or 128
    assert anatomy is not None and row.ttft_ms
    group = ("ttft", _shape(anatomy), row.board, row.prefill_len)
    return Observation(
        f"{row} p{prompt}",
        _shape(anatomy),
        group,
        row.ttft_ms,
        lambda s: ttft_ms(s, s.chips[row.chip], row.host, anatomy, row.recipe, prompt),
        index,
    )


def _observed(call: PublishedCall, forecast: Callable[[SpeedParameters, PublishedCall], float]) -> Observation:
    group = (call.call, call.model, call.chip) + ((call.weight_type, call.past) if call.call == "decode" else ())
    name = f"{call.model} {call.weight_type} on {call.chip}, {call.call} call"
    return Observation(name, _shape(call.anatomy), group, call.ms, lambda s: forecast(s, call))


# Fit


@dataclass(frozen=True)
class Parameter:
    """A parameter that is fitted: where the search starts, and how far, as a factor's logarithm, it may well go."""

    path: str
    start: float
    spread: float


DECODE = (
    Parameter("AX650.bandwidth", 18.5, 0.3),
    Parameter("AX620E.bandwidth", 5.7, 0.3),
    Parameter("AX650.s4_bytes", 0.55, 0.3),
    Parameter("AX620E.s4_bytes", 0.7, 0.3),
    Parameter("call_ms", 0.2, 0.7),
    Parameter("pcie_call_ms", 0.8, 0.4),
    Parameter("float_bytes", 3.0, 0.4),
)
TTFT = (
    Parameter("AX650.compute", 2.0, 0.5),
    Parameter("AX620E.compute", 0.6, 0.5),
    Parameter("AX650.attention_us", 100.0, 1.0),
    Parameter("AX620E.attention_us", 300.0, 1.0),
    Parameter("copy_ms", 1.0, 1.0),
)
NOISE = {"decode": 0.06, "ttft": 0.1}
"""The relative error that published times are expected to have."""


def parameters_of(values: dict[str, float]) -> SpeedParameters:
    """Parameters from their values by path; others have the start of their search."""
    known = {parameter.path: parameter.start for parameter in (*DECODE, *TTFT)} | values
    chips: dict[str, dict[str, float]] = defaultdict(dict)
    for path, value in known.items():
        if "." in path:
            chip, name = path.split(".")
            chips[chip][name] = value
    rest = {path: value for path, value in known.items() if "." not in path}
    return SpeedParameters.from_dict({"chips": chips, **rest, "errors": {}, "float_error": 0.0})


def fit(
    quantity: str, parameters: Sequence[Parameter], observations: Sequence[Observation], fixed: dict[str, float]
) -> dict[str, float]:
    """Least squares of log errors with a soft L1 loss, by Levenberg and Marquardt's method. The starts of the search
    count as observations with a quarter of the weight of a row."""
    number = Counter(observation.group for observation in observations)
    scales = [NOISE[quantity] * number[observation.group] ** 0.5 for observation in observations]
    starts = np.log([parameter.start for parameter in parameters])
    spreads = 2 * np.array([parameter.spread for parameter in parameters])

    def values(x: np.ndarray) -> dict[str, float]:
        return fixed | {p.path: float(v) for p, v in zip(parameters, np.exp(x), strict=True)}

    def residuals(x: np.ndarray) -> np.ndarray:
        speed = parameters_of(values(x))
        errors = [math.log(o.forecast(speed) / o.ms) / scale for o, scale in zip(observations, scales, strict=True)]
        return np.array([*errors, *(x - starts) / spreads])

    x, damping = starts.copy(), 0.01
    r = residuals(x)
    for _ in range(40):
        steps = 1e-5 * np.eye(len(x))
        jacobian = np.array([(residuals(x + step) - r) / 1e-5 for step in steps]).T
        weights = 1 / np.sqrt(1 + r**2)
        normal = jacobian.T @ (weights[:, None] * jacobian)
        move = -np.linalg.solve(normal + damping * np.diag(np.diag(normal)), jacobian.T @ (weights * r))
        moved = residuals(x + move)
        if np.sqrt(1 + moved**2).sum() < np.sqrt(1 + r**2).sum():
            x, r, damping = x + move, moved, damping / 4
        else:
            damping *= 5
        if np.abs(move).max() < 1e-5:
            break
    return values(x)


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {path: float(f"{value:.3g}") for path, value in values.items()}


@dataclass(frozen=True)
class Judged:
    """A row's forecast by parameters that were fitted without any row or call of its shape."""

    observation: Observation
    quantity: str
    forecast_ms: float

    @property
    def values(self) -> tuple[float, float]:
        """Forecast and published value: tok/s for decode, else milliseconds."""
        times = self.forecast_ms, self.observation.ms
        return (1000 / times[0], 1000 / times[1]) if self.quantity == "decode" else times

    @property
    def error(self) -> float:
        forecast, published = self.values
        return forecast / published - 1


def leave_one_model_out(
    quantity: str, parameters: Sequence[Parameter], observations: Sequence[Observation], fixed: dict[str, float]
) -> list[Judged]:
    """The forecasts of all rows, each from a fit without its model."""
    judged = []
    shapes = dict.fromkeys(observation.shape for observation in observations if observation.row is not None)
    for shape in shapes:
        others = [observation for observation in observations if observation.shape != shape]
        speed = parameters_of(fit(quantity, parameters, others, fixed))
        judged += [
            Judged(observation, quantity, observation.forecast(speed))
            for observation in observations
            if observation.shape == shape and observation.row is not None
        ]
    return sorted(judged, key=lambda one: abs(one.error))


def naive_roofline(observations: Sequence[Observation]) -> list[float]:
    """Errors of the four-term roofline, each with its model left out: layers, post layer, KV cache, and a time per call
    over PCIe, all at one bandwidth per chip, with bytes as they are stored."""
    rows = published_rows()
    errors = []
    for left in dict.fromkeys(o.shape for o in observations):
        for o in (o for o in observations if o.shape == left):
            assert o.row is not None
            row = rows[o.row]
            others = [p for p in observations if p.shape != left and p.row is not None and rows[p.row].chip == row.chip]
            bandwidth = median(_naive_bytes(rows[p.row]) / (p.ms - _naive_host(rows[p.row])) for p in others)  # type: ignore[index]
            errors.append(o.ms / (_naive_bytes(row) / bandwidth + _naive_host(row)) - 1)
    return errors


def _naive_bytes(row: PublishedRow) -> float:
    assert row.anatomy is not None
    per_weight = {"s8": 1.0, "s4": 0.5, "bf16": 2.0}[row.weight_type]
    layers = row.anatomy.num_hidden_layers
    return layers * (per_weight * row.anatomy.layer + 4 * row.anatomy.kv_width * row.cache) + row.anatomy.post


def _naive_host(row: PublishedRow) -> float:
    assert row.anatomy is not None
    return PCIE_CALL_MS * (row.anatomy.num_hidden_layers + 1) if row.host == "axcl" else 0.0


# Results


@dataclass(frozen=True)
class Result:
    """The fitted parameters, and the judged forecasts by quantity."""

    parameters: dict[str, Any]
    judged: dict[str, list[Judged]]
    naive: list[float]

    @property
    def text(self) -> str:
        """The content of parameters.json."""
        return json.dumps(self.parameters, indent=2) + "\n"


def result() -> Result:
    """Fits everything."""
    decode, ttft = decode_observations(), ttft_observations()
    decoding = _rounded(fit("decode", DECODE, decode, {}))
    both = _rounded(fit("ttft", TTFT, ttft, decoding))
    judged = {
        "decode": leave_one_model_out("decode", DECODE, decode, {}),
        "ttft": leave_one_model_out("ttft", TTFT, ttft, decoding),
    }
    speed = parameters_of(both)
    rows = published_rows()
    errors = {
        f"{quantity}_{host}": quantile(
            [abs(math.log(1 + one.error)) for one in ones if rows[one.observation.row].host == host]
        )  # type: ignore[index]
        for quantity, ones in judged.items()
        for host in ("onchip", "axcl")
    }
    stray = _errors_of_left_out(speed)
    if not errors["ttft_axcl"]:
        errors["ttft_axcl"] = round(max(stray["ttft_axcl"]), 2)
    chips = {name: vars(chip) for name, chip in speed.chips.items()}
    parameters = {
        "chips": chips,
        "call_ms": speed.call_ms,
        "pcie_call_ms": speed.pcie_call_ms,
        "float_bytes": speed.float_bytes,
        "copy_ms": speed.copy_ms,
        "errors": errors,
        "float_error": round(max(stray["float"]), 2),
    }
    return Result(parameters, judged, naive_roofline([o for o in decode if o.row is not None]))


def quantile(errors: Sequence[float]) -> float:
    """The error, as the logarithm of a factor, that 90 % of the rows stay below; 0 if there are none."""
    return round(float(np.quantile(errors, 0.9)), 2) if errors else 0.0


def _errors_of_left_out(speed: SpeedParameters) -> dict[str, list[float]]:
    """Errors for rows that are left out, for quantities that no other row has."""
    found: dict[str, list[float]] = {"float": [], "ttft_axcl": []}
    for index in left_out_rows():
        row = published_rows()[index]
        if row.anatomy is None or row.chip not in speed.chips or re.search(r"x\d+$", row.board):
            continue
        if row.weight_type == "bf16" and row.tok_s:
            found["float"].append(abs(math.log(_token(index, row).forecast(speed) * row.tok_s / 1000)))
        if row.host == "axcl" and row.ttft_ms and row.prefill_len:
            found["ttft_axcl"].append(abs(math.log(_first_token(index, row).forecast(speed) / row.ttft_ms)))
    return found


def report(found: Result) -> Iterator[str]:
    """The lines that the script prints."""
    rows = published_rows()
    yield "Left out, of both quantities:"
    for index, reason in left_out_rows().items():
        row = rows[index]
        yield f"  {row!s}, {row.tok_s or '-'} tok/s, {row.ttft_ms or '-'} ms ({row.source}): {reason}"
    yield "Left out of the time to first token:"
    for index, row in enumerate(rows):
        if index not in left_out_rows() and row.ttft_ms and (reason := without_ttft(row)):
            yield f"  {row!s}, {row.ttft_ms} ms ({row.source}): {reason}"
    yield "Prefill calls left out:"
    for index, reason in left_out_calls().items():
        call = published_calls()[index]
        yield f"  {call.model} on {call.chip}, {call.past} cached, {call.ms} ms: {reason}"
    for quantity, ones in found.judged.items():
        yield f"{quantity}: forecast with the model left out, published, error"
        for one in ones:
            yield f"  {one.observation.name:45} {one.values[0]:8.2f} {one.values[1]:8.2f} {one.error:+7.1%}"
        yield f"  {summary(ones)}"
    absolute = [abs(error) for error in found.naive]
    yield f"naive four-term roofline, decode: median {median(absolute):.1%}, worst {max(absolute):.1%}"
    for index, row in enumerate(rows):
        if row.ttft_ms and row.anatomy and "video" in row.model:
            observation, speed = _first_token(index, row), SpeedParameters.from_dict(found.parameters)
            forecast = f"{observation.forecast(speed):.0f} ms, published {row.ttft_ms}"
            yield f"left out, for comparison: {observation.name} {forecast}"


def summary(ones: Sequence[Judged]) -> str:
    """Median and worst error of one quantity, relative to the published value."""
    absolute = [abs(one.error) for one in ones]
    models = len({one.observation.shape for one in ones})
    return f"{len(ones)} rows of {models} shapes: median {median(absolute):.1%}, worst {max(absolute):.1%}"


# Plot


_PANELS = {"decode": ("Decode, tok/s", 2.0, 60.0), "ttft": ("Time to first token, ms", 70.0, 15000.0)}
_COLOURS = {
    "AX650": "#1f6fb4",
    "AX620E": "#c8501e",
    "AX650 over PCIe": "#2e8b57",
    "another chip or several cards": "#777777",
}
_SIDE, _LEFT, _TOP, _GAP = 380, 70, 50, 90


def plot(found: Result) -> str:
    """An SVG: forecast against published, on logarithmic axes, for every row whose model axzoo describes."""
    width, height = 2 * (_LEFT + _SIDE) + _GAP - 40, _TOP + _SIDE + 130
    speed = SpeedParameters.from_dict(found.parameters)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, (quantity, (title, low, high)) in enumerate(_PANELS.items()):
        left = _LEFT + number * (_SIDE + _GAP)
        lines += [f'<g transform="translate({left} {_TOP})">', *_axes(title, low, high)]
        lines += [f"  {mark}" for mark in _marks(found, speed, quantity, low, high)]
        lines.append("</g>")
    return "\n".join([*lines, *_legend(_TOP + _SIDE + 70), "</svg>"]) + "\n"


def _position(value: float, low: float, high: float) -> float:
    return _SIDE * math.log(value / low) / math.log(high / low)


def _axes(title: str, low: float, high: float) -> Iterator[str]:
    yield f'  <text x="{_SIDE / 2}" y="-18" text-anchor="middle" font-weight="bold">{title}</text>'
    band = _SIDE * math.log(1.2) / math.log(high / low)
    s, b = _SIDE, band
    yield f'  <polygon points="0,{s} {b:.1f},{s} {s},{b:.1f} {s},0 {s - b:.1f},0 0,{s - b:.1f}" fill="#eef2f5"/>'
    yield f'  <line x1="0" y1="{s}" x2="{s}" y2="0" stroke="#999"/>'
    for tick in (value * 10**power for power in range(5) for value in (1, 2, 5)):
        if low <= tick <= high:
            x = _position(tick, low, high)
            yield f'  <line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{s}" stroke="#ddd"/>'
            yield f'  <line x1="0" y1="{s - x:.1f}" x2="{s}" y2="{s - x:.1f}" stroke="#ddd"/>'
            yield f'  <text x="{x:.1f}" y="{s + 18}" text-anchor="middle" fill="#444">{tick}</text>'
            yield f'  <text x="-8" y="{s - x + 4:.1f}" text-anchor="end" fill="#444">{tick}</text>'
    yield f'  <rect width="{s}" height="{s}" fill="none" stroke="#444"/>'
    yield f'  <text x="{s / 2}" y="{s + 38}" text-anchor="middle">published</text>'
    yield f'  <text transform="translate(-48 {s / 2}) rotate(-90)" text-anchor="middle">forecast</text>'


def _marks(found: Result, speed: SpeedParameters, quantity: str, low: float, high: float) -> Iterator[str]:
    """A filled mark for each row that counts, as forecast with its model left out, and a ring for each other row."""
    judged = {one.observation.row: one for one in found.judged[quantity]}
    for index, row in enumerate(published_rows()):
        if row.anatomy is None or not (row.tok_s if quantity == "decode" else row.ttft_ms):
            continue
        one = judged.get(index)
        if one is None:
            chip = row.chip if row.chip in speed.chips else "AX650"
            known = replace(row, chip=chip)
            observation = _token(index, known) if quantity == "decode" else _first_token(index, known)
            one = Judged(observation, quantity, observation.forecast(speed))
        forecast, published = (min(max(value, low), high) for value in one.values)
        x, y = _position(published, low, high), _SIDE - _position(forecast, low, high)
        colour = _COLOURS[_kind(row)]
        fill = colour if index in judged else "white"
        title = f"{row}: forecast {one.values[0]:.1f}, published {one.values[1]:.1f}".replace("&", "&amp;")
        yield (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" fill-opacity="0.75" stroke="{colour}" '
            f'stroke-width="1.5"><title>{title}</title></circle>'
        )


def _kind(row: PublishedRow) -> str:
    if re.search(r"x\d+$", row.board) or row.chip not in _COLOURS:
        return "another chip or several cards"
    return f"{row.chip} over PCIe" if row.host == "axcl" else row.chip


def _legend(top: int) -> Iterator[str]:
    for number, (name, colour) in enumerate(_COLOURS.items()):
        x = _LEFT + number * 150
        yield f'<circle cx="{x}" cy="{top}" r="4.5" fill="{colour}"/><text x="{x + 10}" y="{top + 4}">{name}</text>'
    y = top + 24
    yield f'<circle cx="{_LEFT}" cy="{y}" r="4.5" fill="#444"/>'
    yield f'<text x="{_LEFT + 10}" y="{y + 4}">counts; forecast by a fit without its model</text>'
    yield f'<circle cx="{_LEFT + 330}" cy="{y}" r="4.5" fill="white" stroke="#444" stroke-width="1.5"/>'
    yield f'<text x="{_LEFT + 340}" y="{y + 4}">left out by a rule</text>'
    yield f'<text x="{_LEFT + 500}" y="{y + 4}" fill="#444">band: within 20 %</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write parameters.json and docs/forecast.svg")
    args = parser.parse_args()
    found = result()
    print("\n".join(report(found)))
    print(found.text)
    if args.write:
        PARAMETERS.write_text(found.text, encoding="utf-8")
        PLOT.write_text(plot(found), encoding="utf-8")


if __name__ == "__main__":
    main()
