"""Level 2: the prompt through the built files, greedily, and the oracle's opinion of every token.

The oracle reads the same text in one pass, so its logits stand beside the built model's at every step.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.check.metrics import kl_divergence, log_softmax
from axzoo.model.oracle import Oracle
from axzoo.runtime.model import Model
from axzoo.tokenizer.local import LocalTokenizer
from axzoo.weights.formats import Thresholds

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


CANDIDATES = 10


@dataclass(frozen=True)
class Step:
    """One generated token: the ten likeliest with their probabilities, and how the oracle differs.

    From a post layer that names its likeliest tokens only, there may be fewer, and their probabilities sum to 1.
    `hidden_states` are the layers' outputs it came of, for the tokens of the context from `start_indice` on.
    """

    token: int
    start_indice: int
    hidden_states: tuple[HiddenState, ...]
    text: str
    candidates: tuple[tuple[str, float], ...]
    oracle_token: int
    kl: float


@dataclass(frozen=True)
class GenerationCheck:
    """The whole answer. `kl` is KL(oracle || built) in nats, over `compared_tokens`: the vocabulary, or as many as the
    post layer names. `conversation` is prompt and answer with their special tokens."""

    prompt: str
    answer: str
    conversation: str
    hit_eos: bool
    steps: tuple[Step, ...]
    mean_kl: float
    compared_tokens: int
    top1_agreement: float

    def failures(self, thresholds: Thresholds, expect: str | None) -> list[str]:
        """What keeps the answer from passing, in words; empty when it passes."""
        said = []
        if not self.mean_kl <= thresholds.max_mean_kl:  # it may be no number
            said.append(f"mean KL divergence {self.mean_kl:.4f} is above {thresholds.max_mean_kl}")
        if self.top1_agreement < thresholds.min_top1_agreement:
            said.append(f"top-1 agreement {self.top1_agreement:.3f} is below {thresholds.min_top1_agreement}")
        if expect is not None and expect not in self.answer:
            said.append(f"the answer {self.answer!r} does not contain {expect!r}")
        return said


def check_generation(
    model: Model, tokenizer: LocalTokenizer, oracle: Oracle, ids: Sequence[int], max_tokens: int, narrator: Narrator
) -> GenerationCheck:
    """Generates up to `max_tokens` tokens after the prompt `ids`, then asks the oracle about each."""
    narrator.begin(0, len(ids))
    logits = [model.prefill(ids, narrator.hidden)]
    passes = [(narrator.start, tuple(narrator.hidden_states))]
    tokens = [_told(narrator, tokenizer, logits[0])]
    ends = set(tokenizer.eos_token_ids)
    while tokens[-1] not in ends and len(tokens) < max_tokens and not model.is_full:
        narrator.begin(model.used, model.used + 1)
        logits.append(model.decode(tokens[-1], narrator.hidden))
        passes.append((narrator.start, tuple(narrator.hidden_states)))
        tokens.append(_told(narrator, tokenizer, logits[-1]))
    wanted = oracle.logits([*ids, *tokens[:-1]])[len(ids) - 1 :].numpy()
    kls = kl_divergence(wanted, np.stack(logits))
    steps = tuple(
        Step(
            token, *passed, tokenizer.decode([token], False), _candidates(tokenizer, row), int(want.argmax()), float(kl)
        )
        for token, passed, row, want, kl in zip(tokens, passes, logits, wanted, kls, strict=True)
    )
    return GenerationCheck(
        prompt=tokenizer.decode(ids, False),
        answer=tokenizer.decode(tokens),
        conversation=tokenizer.decode([*ids, *tokens], False),
        hit_eos=tokens[-1] in ends,
        steps=steps,
        mean_kl=float(kls.mean()),
        compared_tokens=int(np.isfinite(logits[0]).sum()),
        top1_agreement=sum(step.token == step.oracle_token for step in steps) / len(steps),
    )


def _told(narrator: Narrator, tokenizer: LocalTokenizer, logits: np.ndarray) -> int:
    token = int(logits.argmax())
    narrator.token(tokenizer.decode([token], False), _candidates(tokenizer, logits))
    return token


def _candidates(tokenizer: LocalTokenizer, logits: np.ndarray) -> tuple[tuple[str, float], ...]:
    probabilities = np.exp(log_softmax(logits))
    best = np.argsort(-probabilities, kind="stable")[: min(CANDIDATES, np.isfinite(logits).sum())]
    return tuple((tokenizer.decode([int(token)], False), float(probabilities[token])) for token in best)
