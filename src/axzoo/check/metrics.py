"""Error metrics: pure functions of numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def cosine(got: Array, want: Array) -> float:
    """Cosine similarity of two arrays of equal shape, flattened; 1 if both are zero."""
    a, b = got.astype(np.float64).ravel(), want.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else float(np.array_equal(a, b))


def relative_l2(got: Array, want: Array) -> float:
    """||got - want|| / ||want||; 0 if both are zero, infinite if only `want` is."""
    difference = float(np.linalg.norm(got.astype(np.float64) - want.astype(np.float64)))
    norm = float(np.linalg.norm(want.astype(np.float64)))
    return difference / norm if norm else (0.0 if difference == 0 else float("inf"))


def max_abs(got: Array, want: Array) -> float:
    """Maximum absolute difference."""
    return float(np.abs(got.astype(np.float64) - want.astype(np.float64)).max())


def log_softmax(logits: Array) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities over the last axis; a logit of -inf means probability 0."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True).astype(np.float64)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def kl_divergence(want: Array, got: Array) -> NDArray[np.float64]:
    """KL(want || got) in nats over the last axis of two arrays of logits.

    -inf in `got` marks tokens that a post layer with top-k does not return; only the tokens it returns are compared.
    """
    returned = np.isfinite(got)
    p, q = log_softmax(np.where(returned, want, -np.inf)), log_softmax(got)
    difference = np.subtract(p, q, out=np.zeros_like(p), where=returned)
    result: NDArray[np.float64] = (np.exp(p) * difference).sum(axis=-1)
    return result
