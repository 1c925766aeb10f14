"""Samples the next token from logits, fp32 [V].

The order is that of the board's host program: temperature, repetition penalty, then top-p if enabled, else top-k if
enabled, else argmax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from axzoo.core.errors import AxzooError
from axzoo.runtime.post_config import PostConfig

Logits = NDArray[np.float32]


def sample(logits: Logits, generated: Sequence[int], config: PostConfig, rng: np.random.Generator) -> int:
    """Return the id of the next token. `generated` are the answer tokens so far. The logits are not modified.

    Raises AxzooError when the logits contain NaN.
    """
    if np.isnan(logits).any():
        raise AxzooError("the post layer returned NaN logits: check the bundle with `axzoo verify BUNDLE --checks`")
    if config.enable_temperature:
        logits = logits / np.float32(config.temperature)
    if config.enable_repetition_penalty:
        recent = generated[max(0, len(generated) - config.penalty_window) :]
        logits = penalize(logits, recent, config.repetition_penalty)
    if config.enable_top_p_sampling:
        return _draw(*top_p(logits, config.top_p), rng)
    if config.enable_top_k_sampling:
        return _draw(*top_k(logits, config.top_k), rng)
    return int(np.argmax(logits))


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
    out[ids] = np.where(out[ids] > 0, out[ids] / factor, out[ids] * factor)
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
    count = int(np.searchsorted(np.cumsum(probabilities[order]), p)) + 1
    kept = order[:count]
    return kept, probabilities[kept] / probabilities[kept].sum()


def _softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(shifted / shifted.sum())


def _draw(ids: NDArray[np.int64], probabilities: NDArray[np.float64], rng: np.random.Generator) -> int:
    return int(rng.choice(ids, p=probabilities))
