"""What a level 2 check shows while it runs: every layer's hidden state and every token, as `llm_build` prints them; the
hidden states are also kept, in short, for the report."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_SHOWN = 5
"""Values of a single token's hidden state."""


@dataclass(frozen=True)
class HiddenState:
    """A layer's output for `tokens` tokens from position `start_indice` on: the first `values` of the last token's, and
    the root mean square of all."""

    layer: int
    start_indice: int
    tokens: int
    values: tuple[float, ...]
    rms: float


class Narrator:
    """Tells of a simulation of `layers` layers, pass by pass: `begin`, `hidden` after each layer, `token`.

    Lines of an instant go through the logger, with their time; the rest goes to stdout.
    """

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._end = 0
        self._is_decode = False
        self.start = 0
        self.hidden_states: list[HiddenState] = []

    def begin(self, start: int, end: int) -> None:
        """A pass that extends the context from `start` to `end` tokens. What is kept is this pass's from now on."""
        self.start, self._end, self._is_decode = start, end, end - start == 1
        self.hidden_states = []
        self._announce(0, start)

    def hidden(self, layer: int, position: int, rows: NDArray[Any]) -> None:
        """A layer's output [n, hidden_size] for the tokens from `position` on; one token's is shown in short."""
        logger.info("end simulate")
        values = rows.astype(np.float32)
        self.hidden_states.append(in_short(layer, position, values))
        _tell(format_hidden(values[0, :_SHOWN] if len(values) == 1 else values[None]))
        after = position + len(rows)
        if layer + 1 < self._layers:
            self._announce(layer + 1, position)
        elif after < self._end:  # the prompt's next chunk
            self._announce(0, after)

    def token(self, text: str, candidates: tuple[tuple[str, float], ...]) -> None:
        """The pass's result: the token chosen, and the likeliest ones."""
        if self._is_decode:
            _tell(f"start_indice = {self._end - 1}")
        _tell(visible(text))
        # The document's spelling: who reads these logs by program looks for it.
        _tell("posibile " + ",".join(f"({text!r}, {round(probability, 4)})" for text, probability in candidates))

    def _announce(self, layer: int, position: int) -> None:
        if self._is_decode:
            _tell(f"start_indice = {position}")
        logger.info(f"simulate layer {layer}")


def in_short(layer: int, position: int, rows: NDArray[np.float32]) -> HiddenState:
    """rows [n, hidden_size], a layer's output for the tokens from `position` on."""
    first = tuple(map(float, rows[-1, :_SHOWN]))
    return HiddenState(layer, position, len(rows), first, float(np.sqrt(np.square(rows, dtype=np.float64).mean())))


def format_hidden(values: NDArray[np.float32]) -> str:
    """A hidden state with six digits a number, and three dots for the middle of what is long."""
    return np.array2string(values, threshold=0, formatter={"float_kind": lambda value: f"{value:.6g}"})


def visible(text: str) -> str:
    """Text on one line, without control characters a terminal would obey: a newline is \\n."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _tell(text: str) -> None:
    print(text, flush=True)  # logger lines, which go to stderr, may share the file
