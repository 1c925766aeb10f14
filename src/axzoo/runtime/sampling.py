"""Samples the next token from logits, fp32 [V].

The order is that of the board's host program: temperature, repetition penalty, then top-p if enabled, else top-k if
enabled, else argmax. Requests to a server may ask for more, see `Adjustments`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from axzoo.core.errors import AxzooError
from axzoo.runtime.post_config import PostConfig

Logits = NDArray[np.float32]


_FP32_MAX = float(np.finfo(np.float32).max)
_MIN_TEMPERATURE = 1e-5
"""Below this temperature, the most probable token is chosen, which is the limit. Dividing by it could overflow fp32."""


@dataclass(frozen=True)
class Adjustments:
    """What a request can ask for beyond post_config.json. The defaults change nothing.

    `top_k` limits the candidates before top-p. `min_p` drops candidates whose probability is below `min_p` times the
    largest. The penalties are subtracted from the logits of answer tokens: `frequency_penalty` for each occurrence,
    `presence_penalty` once. `logit_bias` maps token ids to numbers that are added to their logits.
    """

    top_k: int | None = None
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


NO_ADJUSTMENTS = Adjustments()


def sample(
    logits: Logits,
    generated: Sequence[int],
    config: PostConfig,
    rng: np.random.Generator,
    adjustments: Adjustments = NO_ADJUSTMENTS,
) -> int:
    """Return the id of the next token. `generated` are the answer tokens so far. The logits are not modified.

    Raises AxzooError when the logits contain NaN or no finite maximum.
    """
    if not math.isfinite(logits.max()):  # NaN if any logit is NaN
        raise AxzooError("the post layer returned NaN logits: check the bundle with `axzoo verify BUNDLE --checks`")
    logits = _adjust(logits, generated, adjustments)
    is_cold = config.enable_temperature and config.temperature < _MIN_TEMPERATURE
    if config.enable_temperature and not is_cold:
        with np.errstate(over="ignore"):  # _clip removes the infinities
            logits = _clip(logits / np.float32(config.temperature))
    if config.enable_repetition_penalty:
        recent = generated[max(0, len(generated) - config.penalty_window) :]
        logits = penalize(logits, recent, config.repetition_penalty)
    if is_cold or not (config.enable_top_p_sampling or config.enable_top_k_sampling):
        return int(np.argmax(logits))
    return _draw(*_candidates(logits, config, adjustments), rng)


def _candidates(
    logits: Logits, config: PostConfig, adjustments: Adjustments
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the ids that may be drawn, best first, and their probabilities."""
    if not config.enable_top_p_sampling:
        ids, probabilities = top_k(logits, config.top_k)
    elif adjustments.top_k is None:
        ids, probabilities = top_p(logits, config.top_p)
    else:
        ids, probabilities = _nucleus(*top_k(logits, adjustments.top_k), config.top_p)
    if adjustments.min_p > 0:
        kept = probabilities >= adjustments.min_p * probabilities[0]
        ids, probabilities = ids[kept], probabilities[kept] / probabilities[kept].sum()
    return ids, probabilities


def _adjust(logits: Logits, generated: Sequence[int], adjustments: Adjustments) -> Logits:
    """Apply the penalties and the bias. Raises AxzooError when the bias has an id outside the vocabulary."""
    counts = Counter(generated) if adjustments.frequency_penalty or adjustments.presence_penalty else Counter[int]()
    if not counts and not adjustments.logit_bias:
        return logits
    out = logits.copy()
    for token, count in counts.items():
        out[token] -= np.float32(adjustments.frequency_penalty * count + adjustments.presence_penalty)
    for token, bias in adjustments.logit_bias.items():
        if token >= out.size:
            raise AxzooError(f"logit_bias: token ids must be below {out.size}, not {token}")
        out[token] += np.float32(bias)
    return out


def _clip(logits: Logits) -> Logits:
    """Replace infinities by the largest numbers of fp32, so that differences of logits are never NaN."""
    return np.asarray(np.clip(logits, -_FP32_MAX, _FP32_MAX), np.float32)


def penalize(logits: Logits, recent: Sequence[int], penalty: float) -> Logits:
    """Make recent tokens less probable, as the board's host program does (ax-llm's LLMPostprocess).

    Positive logits are divided by the square root of the penalty, others are multiplied by it. A token is penalized
    once, however often it occurs in `recent`.
    """
    if not recent:
        return logits
    ids = np.unique(np.asarray(recent, np.int64))
    factor = np.float32(math.sqrt(penalty))
    out = logits.copy()
    with np.errstate(over="ignore"):
        out[ids] = _clip(np.where(out[ids] > 0, out[ids] / factor, out[ids] * factor))
    return out


def top_k(logits: Logits, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the k most probable ids, best first (ties: smaller id first), and their renormalized probabilities."""
    k = min(k, logits.size)
    threshold = np.partition(logits, logits.size - k)[logits.size - k]
    candidates = np.flatnonzero(logits >= threshold)
    ids = candidates[np.argsort(-logits[candidates], kind="stable")][:k]
    return ids, _softmax(logits[ids])


def top_p(logits: Logits, p: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the fewest ids, best first, whose total probability reaches p, and their renormalized probabilities."""
    probabilities = _softmax(logits)
    order = np.argsort(-probabilities, kind="stable")
    return _nucleus(order, probabilities[order], p)


def _nucleus(
    ids: NDArray[np.int64], probabilities: NDArray[np.float64], p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the first ids whose total probability reaches p, and their renormalized probabilities."""
    count = int(np.searchsorted(np.cumsum(probabilities), p)) + 1
    return ids[:count], probabilities[:count] / probabilities[:count].sum()


def top_logprobs(logits: Logits, chosen: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """Return the log probability of the chosen token, and the `count` most probable tokens with theirs, best first.

    They are those of the model, before temperature, penalties and filters. They are finite: a probability of 0 is
    given as -9999.
    """
    maximum = float(logits.max())
    total = maximum + math.log(float(np.exp(logits.astype(np.float64) - maximum).sum()))

    def logprob(token: int) -> float:
        return max(float(logits[token]) - total, -9999.0)

    best = top_k(logits, count)[0].tolist() if count else []
    return logprob(chosen), [(token, logprob(token)) for token in best]


def _softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(shifted / shifted.sum())


def _draw(ids: NDArray[np.int64], probabilities: NDArray[np.float64], rng: np.random.Generator) -> int:
    return int(rng.choice(ids, p=probabilities))
