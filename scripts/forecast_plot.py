"""Draws forecasts against published measurements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """A measurement and its forecast. It is drawn as a ring if a rule leaves it out (`counts` is false)."""

    quantity: str
    forecast: float
    published: float
    kind: str
    counts: bool
    row: str


_PANELS = {"decode": ("Decode, tok/s", 2.0, 60.0), "ttft": ("Time to first token, ms", 70.0, 15000.0)}
COLOURS = {
    "AX650": "#1f6fb4",
    "AX620E": "#c8501e",
    "AX650 over PCIe": "#2e8b57",
    "another chip or several cards": "#777777",
}
_SIDE, _LEFT, _TOP, _GAP = 380, 70, 50, 90


def plot(marks: Sequence[Mark]) -> str:
    """An SVG with logarithmic axes."""
    width, height = 2 * (_LEFT + _SIDE) + _GAP - 40, _TOP + _SIDE + 130
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, (quantity, (title, low, high)) in enumerate(_PANELS.items()):
        left = _LEFT + number * (_SIDE + _GAP)
        lines += [f'<g transform="translate({left} {_TOP})">', *_axes(title, low, high)]
        lines += [f"  {mark}" for mark in _circles(marks, quantity, low, high)]
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


def _circles(marks: Sequence[Mark], quantity: str, low: float, high: float) -> Iterator[str]:
    for mark in marks:
        if mark.quantity != quantity:
            continue
        forecast, published = (min(max(value, low), high) for value in (mark.forecast, mark.published))
        x, y = _position(published, low, high), _SIDE - _position(forecast, low, high)
        colour = COLOURS[mark.kind]
        fill = colour if mark.counts else "white"
        title = f"{mark.row}: forecast {mark.forecast:.1f}, published {mark.published:.1f}".replace("&", "&amp;")
        yield (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" fill-opacity="0.75" stroke="{colour}" '
            f'stroke-width="1.5"><title>{title}</title></circle>'
        )


def _legend(top: int) -> Iterator[str]:
    for number, (name, colour) in enumerate(COLOURS.items()):
        x = _LEFT + number * 150
        yield f'<circle cx="{x}" cy="{top}" r="4.5" fill="{colour}"/><text x="{x + 10}" y="{top + 4}">{name}</text>'
    y = top + 24
    yield f'<circle cx="{_LEFT}" cy="{y}" r="4.5" fill="#444"/>'
    yield f'<text x="{_LEFT + 10}" y="{y + 4}">counts; forecast by a fit without its model</text>'
    yield f'<circle cx="{_LEFT + 330}" cy="{y}" r="4.5" fill="white" stroke="#444" stroke-width="1.5"/>'
    yield f'<text x="{_LEFT + 340}" y="{y + 4}">left out by a rule</text>'
    yield f'<text x="{_LEFT + 500}" y="{y + 4}" fill="#444">band: within 20 %</text>'
