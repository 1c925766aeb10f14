"""Fits the parameters of `axzoo forecast` to published measurements, and judges them with each model left out.

    python scripts/fit_forecast.py                    # prints rules, rows left out, errors
    python scripts/fit_forecast.py --write            # also writes parameters.json and docs/forecast.svg

The data are the CSV files in src/axzoo/forecast. forecast_rows.py has the rules that leave rows out.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from forecast_plot import COLOURS, Mark, plot
from forecast_rows import (
    PCIE_CALL_MS,
    Observation,
    decode_observations,
    first_token,
    left_out_calls,
    left_out_rows,
    token,
    ttft_observations,
    without_ttft,
)

from axzoo.forecast.published import PublishedRow, published_calls, published_rows
from axzoo.forecast.speed import (
    PARAMETERS,
    SpeedParameters,
)

PLOT = Path(__file__).parents[1] / "docs" / "forecast.svg"


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
            found["float"].append(abs(math.log(token(index, row).forecast(speed) * row.tok_s / 1000)))
        if row.host == "axcl" and row.ttft_ms and row.prefill_len:
            found["ttft_axcl"].append(abs(math.log(first_token(index, row).forecast(speed) / row.ttft_ms)))
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
            observation, speed = first_token(index, row), SpeedParameters.from_dict(found.parameters)
            forecast = f"{observation.forecast(speed):.0f} ms, published {row.ttft_ms}"
            yield f"left out, for comparison: {observation.name} {forecast}"


def summary(ones: Sequence[Judged]) -> str:
    """Median and worst error of one quantity, relative to the published value."""
    absolute = [abs(one.error) for one in ones]
    models = len({one.observation.shape for one in ones})
    return f"{len(ones)} rows of {models} shapes: median {median(absolute):.1%}, worst {max(absolute):.1%}"


def marks(found: Result) -> Iterator[Mark]:
    """A mark for every row whose model axzoo describes: rows that count as forecast with their model left out."""
    speed = SpeedParameters.from_dict(found.parameters)
    for quantity, judged in found.judged.items():
        by_row = {one.observation.row: one for one in judged}
        for index, row in enumerate(published_rows()):
            if row.anatomy is None or not (row.tok_s if quantity == "decode" else row.ttft_ms):
                continue
            one = by_row.get(index)
            if one is None:
                known = replace(row, chip=row.chip if row.chip in speed.chips else "AX650")
                observation = token(index, known) if quantity == "decode" else first_token(index, known)
                one = Judged(observation, quantity, observation.forecast(speed))
            yield Mark(quantity, *one.values, kind=_kind(row), counts=index in by_row, row=str(row))


def _kind(row: PublishedRow) -> str:
    if re.search(r"x\d+$", row.board) or row.chip not in COLOURS:
        return "another chip or several cards"
    return f"{row.chip} over PCIe" if row.host == "axcl" else row.chip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write parameters.json and docs/forecast.svg")
    args = parser.parse_args()
    found = result()
    print("\n".join(report(found)))
    print(found.text)
    if args.write:
        PARAMETERS.write_text(found.text, encoding="utf-8")
        PLOT.write_text(plot(list(marks(found))), encoding="utf-8")


if __name__ == "__main__":
    main()
