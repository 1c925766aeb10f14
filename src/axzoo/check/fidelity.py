"""Fidelity of a built model: its predictions over a text and its greedy answers, compared with the oracle."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo.check.metrics import kl_divergence, log_softmax
from axzoo.model.oracle import Oracle
from axzoo.runtime.model import Model


@dataclass(frozen=True)
class TextFidelity:
    """Averages over the tokens of a text: top-1 agreement, KL(oracle || built) in nats, and both perplexities."""

    tokens: int
    top1_agreement: float
    mean_kl: float
    oracle_perplexity: float
    built_perplexity: float


def text_fidelity(model: Model, want: NDArray[np.float32], ids: Sequence[int]) -> TextFidelity:
    """Compares the predictions after each of `ids`, which must fit in one context, with the oracle's logits `want`
    [len(ids), vocab_size]."""
    got = _logits_after_each(model, ids)
    targets = np.asarray(ids[1:])
    return TextFidelity(
        tokens=len(ids),
        top1_agreement=float((want.argmax(-1) == got.argmax(-1)).mean()),
        mean_kl=float(kl_divergence(want, got).mean()),
        oracle_perplexity=_perplexity(want[:-1], targets),
        built_perplexity=_perplexity(got[:-1], targets),
    )


@dataclass(frozen=True)
class GreedyAgreement:
    """The number of greedy tokens that agree before the first difference, out of those the oracle generates.

    At the first difference, `margin` is the oracle's logit of its own choice minus that of the built model's choice,
    and `bf16_step` the distance between neighbouring bf16 numbers there. A margin within one step is a tie, which bf16
    logits cannot resolve.
    """

    agreed: int
    tokens: int
    margin: float = 0.0
    bf16_step: float = 0.0

    @property
    def is_tie(self) -> bool:
        return self.margin <= self.bf16_step


def greedy_agreement(
    model: Model, oracle: Oracle, ids: Sequence[int], tokens: int, ends: Collection[int]
) -> GreedyAgreement:
    """Continues the prompt `ids` greedily with both, up to `tokens` tokens or until the oracle gives one of `ends`."""
    model.reset()
    logits = model.prefill(ids)
    agreed = 0
    for token, wanted in oracle.greedy(ids, tokens):
        chosen = int(logits.argmax())
        if chosen != token:
            peak = float(wanted[token])
            return GreedyAgreement(agreed, tokens, peak - float(wanted[chosen]), 2.0 ** (np.frexp(peak)[1] - 8))
        agreed += 1
        if token in ends or agreed == tokens:
            break
        logits = model.decode(token)
    return GreedyAgreement(agreed, agreed)


def _logits_after_each(model: Model, ids: Sequence[int]) -> NDArray[np.float32]:
    hidden: dict[tuple[int, int], NDArray[Any]] = {}
    model.reset()
    model.prefill(ids, lambda layer, position, rows: hidden.update({(layer, position): rows}))
    last = max(layer for layer, _ in hidden)
    rows = np.concatenate([hidden[key] for key in sorted(hidden) if key[0] == last])
    return np.stack([model.logits(row[None, None]) for row in rows])


def _perplexity(logits: NDArray[np.float32], targets: NDArray[Any]) -> float:
    losses = -log_softmax(logits)[np.arange(len(targets)), targets]
    return float(np.exp(losses.mean()))
