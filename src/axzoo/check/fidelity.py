"""What building cost a model: its predictions over a text, and its greedy answers, beside the oracle's."""

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
    """Over every token of a text: how often both find the same token likeliest, KL(oracle || built) in nats, and each
    one's perplexity."""

    tokens: int
    top1_agreement: float
    mean_kl: float
    oracle_perplexity: float
    built_perplexity: float


def text_fidelity(model: Model, want: NDArray[np.float32], ids: Sequence[int]) -> TextFidelity:
    """Compares the predictions after each of `ids` (as many as one context holds) with the oracle's, `want`
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
    """How many greedy tokens agree before the first difference, of those the oracle says until it ends.

    Where they differ, `lead` is by how many logits the oracle prefers its own choice, and `bf16_step` the distance of
    neighbouring bf16 numbers there: a lead within one step is a tie, which a file with bf16 logits cannot resolve.
    """

    agreed: int
    tokens: int
    lead: float = 0.0
    bf16_step: float = 0.0

    @property
    def is_tie(self) -> bool:
        return self.lead <= self.bf16_step


def greedy_agreement(
    model: Model, oracle: Oracle, ids: Sequence[int], tokens: int, ends: Collection[int]
) -> GreedyAgreement:
    """Lets both continue the prompt `ids` greedily, up to `tokens` tokens or one of `ends` from the oracle."""
    model.reset()
    logits = model.prefill(ids)
    said = 0
    for token, wanted in oracle.greedy(ids, tokens):
        chosen = int(logits.argmax())
        if chosen != token:
            peak = float(wanted[token])
            return GreedyAgreement(said, tokens, peak - float(wanted[chosen]), 2.0 ** (np.frexp(peak)[1] - 8))
        said += 1
        if token in ends or said == tokens:
            break
        logits = model.decode(token)
    return GreedyAgreement(said, said)


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
