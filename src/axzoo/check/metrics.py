"""How far a result is from what it should be. Pure functions over numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def cosine(got: Array, want: Array) -> float:
    """The cosine of the angle between two arrays of one shape, flattened; 1 when both are zero."""
    a, b = got.astype(np.float64).ravel(), want.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else float(np.array_equal(a, b))


def relative_l2(got: Array, want: Array) -> float:
    """||got - want|| / ||want||; 0 when both are zero, infinite when only `want` is."""
    difference = float(np.linalg.norm(got.astype(np.float64) - want.astype(np.float64)))
    norm = float(np.linalg.norm(want.astype(np.float64)))
    return difference / norm if norm else (0.0 if difference == 0 else float("inf"))


def max_abs(got: Array, want: Array) -> float:
    """The largest absolute difference."""
    return float(np.abs(got.astype(np.float64) - want.astype(np.float64)).max())


def log_softmax(logits: Array) -> NDArray[np.float64]:
    """Natural log probabilities over the last axis; a logit of -inf is a probability of 0."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True).astype(np.float64)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def kl_divergence(want: Array, got: Array) -> NDArray[np.float64]:
    """KL(want || got) in nats over the last axis of two arrays of logits.

    Where `got` is -inf, a post layer named only its likeliest tokens: then both are compared on those alone.
    """
    named = np.isfinite(got)
    p, q = log_softmax(np.where(named, want, -np.inf)), log_softmax(got)
    difference = np.subtract(p, q, out=np.zeros_like(p), where=named)
    result: NDArray[np.float64] = (np.exp(p) * difference).sum(axis=-1)
    return result
