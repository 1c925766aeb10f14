"""Samples the next token from logits, fp32 [V].

The order is that of the board's host program: temperature, repetition penalty, then top-p if enabled, else top-k if
enabled, else argmax.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PostConfig:
    """The keys of post_config.json. The defaults are those that the board's host program ships.

    Raises AxzooError when a value has the wrong type or is out of range.
    """

    enable_temperature: bool = True
    temperature: float = 0.9
    enable_repetition_penalty: bool = False
    repetition_penalty: float = 1.2
    penalty_window: int = 20
    enable_top_p_sampling: bool = False
    top_p: float = 0.8
    enable_top_k_sampling: bool = True
    top_k: int = 10

    @property
    def is_random(self) -> bool:
        """Whether the next token is drawn at random."""
        return self.enable_top_p_sampling or (self.enable_top_k_sampling and self.top_k > 1)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kind = type(field.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise AxzooError(f"{field.name} must be of type {kind.__name__}, not {value!r}")
        for name, valid, requirement in (
            ("temperature", 0 < self.temperature < math.inf, "above 0"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
            ("penalty_window", self.penalty_window >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 1, "1 or more"),
        ):
            if not valid:
                raise AxzooError(f"{name} must be {requirement}, not {getattr(self, name)}")


GREEDY = PostConfig(enable_temperature=False, enable_top_k_sampling=False)
"""Always selects the most probable token."""


def read_post_config(path: Path) -> PostConfig:
    """Read post_config.json. Omitted keys keep their defaults. If the file is missing, log a warning and return GREEDY.

    Raises AxzooError when the file is not a JSON object, has an unknown key, or a value is invalid.
    """
    if not path.is_file():
        logger.warning(f"{path} is missing: using greedy decoding")
        return GREEDY
    data = read_json(path)
    if not isinstance(data, dict):
        raise AxzooError(f"{path} must hold a JSON object")
    known = [field.name for field in fields(PostConfig)]
    if unknown := sorted(data.keys() - set(known)):
        raise AxzooError(f"{path} has the unknown key {unknown[0]!r}: the known keys are {', '.join(known)}")
    try:
        return PostConfig(**data)
    except AxzooError as error:
        raise AxzooError(f"{path}: {error}") from error


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
