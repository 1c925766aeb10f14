"""Level 2: the prompt through the built files, greedily, and the oracle's opinion of every token.

The oracle reads the same text in one pass, so its logits stand beside the built model's at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from axzoo.check.metrics import kl_divergence, log_softmax
from axzoo.check.narration import HiddenState, Narrator
from axzoo.check.thresholds import Thresholds
from axzoo.reference import Oracle
from axzoo.runtime.model import Model
from axzoo.tokenizer.local import LocalTokenizer

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
