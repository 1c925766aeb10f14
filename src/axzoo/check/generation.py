"""Check level 2: greedy generation with the built files, compared with the oracle token by token.

The oracle runs over the same text in one pass, which gives its logits at every step.
"""

from __future__ import annotations

import logging
import math
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
"""Number of values shown of a single token's hidden state."""


@dataclass(frozen=True)
class HiddenState:
    """Summary of a layer's output for `tokens` tokens from position `start_indice` on: the first `values` of the last
    token, and the root mean square of all."""

    layer: int
    start_indice: int
    tokens: int
    values: tuple[float, ...]
    rms: float


class GenerationLog:
    """Logs a generation with `layers` layers: per pass `begin`, then `hidden` after each layer, then `token`.

    Events go through the logger, with a timestamp; values go to stdout.
    """

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._end = 0
        self._is_decode = False
        self.start = 0
        self.hidden_states: list[HiddenState] = []

    def begin(self, start: int, end: int) -> None:
        """Starts a pass that extends the context from `start` to `end` tokens, and resets `hidden_states`."""
        self.start, self._end, self._is_decode = start, end, end - start == 1
        self.hidden_states = []
        self._announce(0, start)

    def hidden(self, layer: int, position: int, rows: NDArray[Any]) -> None:
        """Logs a layer's output [n, hidden_size] for the tokens from `position` on; of one token, the first values."""
        logger.info("end simulate")
        values = rows.astype(np.float32)
        self.hidden_states.append(summarize(layer, position, values))
        _print(format_hidden(values[0, :_SHOWN] if len(values) == 1 else values[None]))
        after = position + len(rows)
        if layer + 1 < self._layers:
            self._announce(layer + 1, position)
        elif after < self._end:  # the prompt's next chunk
            self._announce(0, after)

    def token(self, text: str, candidates: tuple[tuple[str, float], ...]) -> None:
        """Logs the result of the pass: the chosen token and the most probable ones."""
        if self._is_decode:
            _print(f"start_indice = {self._end - 1}")
        _print(visible(text))
        # The vendor's spelling, which programs that parse these logs look for.
        _print("posibile " + ",".join(f"({text!r}, {round(probability, 4)})" for text, probability in candidates))

    def _announce(self, layer: int, position: int) -> None:
        if self._is_decode:
            _print(f"start_indice = {position}")
        logger.info(f"simulate layer {layer}")


def summarize(layer: int, position: int, rows: NDArray[np.float32]) -> HiddenState:
    """Summarizes rows [n, hidden_size], a layer's output for the tokens from `position` on."""
    first = tuple(map(float, rows[-1, :_SHOWN]))
    return HiddenState(layer, position, len(rows), first, float(np.sqrt(np.square(rows, dtype=np.float64).mean())))


def format_hidden(values: NDArray[np.float32]) -> str:
    """A hidden state with six digits per number; the middle of long arrays is replaced by three dots."""
    return np.array2string(values, threshold=0, formatter={"float_kind": lambda value: f"{value:.6g}"})


def visible(text: str) -> str:
    """Text on one line with control characters escaped: a newline becomes \\n."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _print(text: str) -> None:
    print(text, flush=True)  # log lines on stderr may go to the same file


CANDIDATES = 10

WRONG_MODEL = 20
"""The mean KL divergence that no quantization explains, relative to the usual limit of the formats."""

STORED_KL = {"fp32": 0.001, "fp16": 0.02, "bf16": 0.2}
"""The largest mean KL divergence from the oracle on the files' own weights, by hidden state type: what rounding hidden
states and logits may change. SmolLM2-135M has 0.0004 in bf16."""


@dataclass(frozen=True)
class Step:
    """One generated token: the ten most probable candidates with their probabilities, and the oracle's choice.

    With a post layer that returns top-k, there may be fewer candidates, and their probabilities sum to 1.
    `hidden_states` are the outputs of the layers in this pass, for the tokens from `start_indice` on.
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
    """The whole answer.

    KL(oracle || built) is in nats, over `compared_tokens` tokens: the vocabulary, or the top k of the post layer.
    `mean_kl` and `top1_agreement` compare with the checkpoint, and `stored_mean_kl` with the file's own weights: only
    the rounding of hidden states and logits remains. `conversation` is the prompt and the answer with their special
    tokens.
    """

    prompt: str
    answer: str
    conversation: str
    hit_eos: bool
    steps: tuple[Step, ...]
    mean_kl: float
    compared_tokens: int
    top1_agreement: float
    stored_mean_kl: float

    def faults(self, hidden_state_type: str, thresholds: Thresholds, expect: str | None) -> list[str]:
        """The reasons why the answer is wrong; empty if it is right. `thresholds` are those of the formats."""
        reasons, limit = [], STORED_KL[hidden_state_type]
        if not math.isfinite(self.mean_kl):
            reasons.append("the logits are not finite")
        elif not self.stored_mean_kl <= limit:
            divergence = f"{self.stored_mean_kl:.4f}, above {limit}"
            reasons.append(f"mean KL divergence from the oracle on the files' own weights is {divergence}")
        elif self.mean_kl > WRONG_MODEL * thresholds.max_mean_kl:
            reasons.append(
                f"mean KL divergence {self.mean_kl:.4f} is more than quantization costs: another model's files?"
            )
        if expect is not None and expect not in self.answer:
            reasons.append(f"the answer {self.answer!r} does not contain {expect!r}")
        return reasons

    def exceeds(self, thresholds: Thresholds) -> dict[str, str]:
        """The thresholds that the cost of quantization exceeds, by name, with the number. NaN exceeds them."""
        reasons = {}
        if not self.mean_kl <= thresholds.max_mean_kl:
            reasons["max_mean_kl"] = f"mean KL divergence {self.mean_kl:.4f} is above {thresholds.max_mean_kl}"
        if not self.top1_agreement >= thresholds.min_top1_agreement:
            agreement = f"top-1 agreement {self.top1_agreement:.3f} is below {thresholds.min_top1_agreement}"
            reasons["min_top1_agreement"] = agreement
        return reasons


@dataclass(frozen=True)
class Answer:
    """An answer to the prompt `ids`: its tokens, and for each of them the logits [vocab_size] it was chosen from, and
    start and hidden states of the pass."""

    ids: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: tuple[NDArray[np.float32], ...]
    passes: tuple[tuple[int, tuple[HiddenState, ...]], ...]


def generate_answer(
    model: Model, tokenizer: LocalTokenizer, ids: Sequence[int], max_tokens: int, log: GenerationLog
) -> Answer:
    """Generates up to `max_tokens` tokens after the prompt `ids` with the built files."""
    log.begin(0, len(ids))
    logits = [model.prefill(ids, log.hidden)]
    passes = [(log.start, tuple(log.hidden_states))]
    tokens = [_choose(log, tokenizer, logits[0])]
    ends = set(tokenizer.eos_token_ids)
    while tokens[-1] not in ends and len(tokens) < max_tokens and not model.is_full:
        log.begin(model.used, model.used + 1)
        logits.append(model.decode(tokens[-1], log.hidden))
        passes.append((log.start, tuple(log.hidden_states)))
        tokens.append(_choose(log, tokenizer, logits[-1]))
    return Answer(tuple(ids), tuple(tokens), tuple(logits), tuple(passes))


def compare_answer(answer: Answer, tokenizer: LocalTokenizer, oracle: Oracle, stored: Oracle) -> GenerationCheck:
    """Compares each token with two oracles: `oracle` has the checkpoint's weights, `stored` those of the files.

    It does not need the engine, which may be released before.
    """
    ids, tokens, logits = list(answer.ids), list(answer.tokens), np.stack(answer.logits)
    wanted, from_stored = (
        reference.logits([*ids, *tokens[:-1]], first=len(ids) - 1).numpy() for reference in (oracle, stored)
    )
    kls = [float(kl) for kl in kl_divergence(wanted, logits)]
    steps = tuple(
        Step(token, *passed, tokenizer.decode([token], False), _candidates(tokenizer, row), int(want.argmax()), kl)
        for token, passed, row, want, kl in zip(tokens, answer.passes, answer.logits, wanted, kls, strict=True)
    )
    return GenerationCheck(
        prompt=tokenizer.decode(ids, False),
        answer=tokenizer.decode(tokens),
        conversation=tokenizer.decode([*ids, *tokens], False),
        hit_eos=tokens[-1] in tokenizer.eos_token_ids,
        steps=steps,
        mean_kl=float(np.mean(kls)),
        compared_tokens=int(np.isfinite(answer.logits[0]).sum()),
        top1_agreement=sum(step.token == step.oracle_token for step in steps) / len(steps),
        stored_mean_kl=float(kl_divergence(from_stored, logits).mean()),
    )


def _choose(log: GenerationLog, tokenizer: LocalTokenizer, logits: np.ndarray) -> int:
    token = int(logits.argmax())
    log.token(tokenizer.decode([token], False), _candidates(tokenizer, logits))
    return token


def _candidates(tokenizer: LocalTokenizer, logits: np.ndarray) -> tuple[tuple[str, float], ...]:
    probabilities = np.exp(log_softmax(logits))
    best = np.argsort(-probabilities, kind="stable")[: min(CANDIDATES, np.isfinite(logits).sum())]
    return tuple((tokenizer.decode([int(token)], False), float(probabilities[token])) for token in best)
