from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import CONTEXT, Oracle

from axzoo.core.errors import AxzooError
from axzoo.runtime.generate import Generation
from axzoo.runtime.model import load_model
from axzoo.runtime.post_config import GREEDY
from axzoo.runtime.sampling import sample

PROMPT = [3, 1, 4, 1, 5]


def greedy(logits: np.ndarray, generated: object) -> int:
    return sample(logits, [], GREEDY, np.random.default_rng())


@pytest.fixture(scope="module")
def expected(oracle: Oracle) -> list[int]:
    """The oracle's answer, until prompt and answer exceed the context by one token."""
    ids = list(PROMPT)
    while len(ids) <= CONTEXT:
        ids.append(int(oracle.logits(ids).argmax()))
    return ids[len(PROMPT) :]


def test_an_answer_ends_when_the_context_is_full(bundle: Path, expected: list[int]) -> None:
    model = load_model(bundle)
    generation = Generation(model, PROMPT, greedy, frozenset())
    assert list(generation) == expected
    assert generation.stop_reason == "context full"
    assert model.used == CONTEXT
    assert generation.ttft > 0
    assert generation.tokens_per_second > 0


def test_eos_ends_the_answer_and_is_not_part_of_it(bundle: Path, expected: list[int]) -> None:
    stop_at = expected.index(expected[4])
    generation = Generation(load_model(bundle), PROMPT, greedy, {expected[4]})
    assert list(generation) == expected[:stop_at]
    assert generation.stop_reason == "eos"
    empty = Generation(load_model(bundle), PROMPT, greedy, {expected[0]})
    assert list(empty) == []
    assert (empty.stop_reason, empty.tokens_per_second) == ("eos", 0.0)


@pytest.mark.parametrize("limit", [1, 3])
def test_max_tokens(bundle: Path, expected: list[int], limit: int) -> None:
    generation = Generation(load_model(bundle), PROMPT, greedy, frozenset(), limit)
    assert list(generation) == expected[:limit]
    assert generation.stop_reason == "max tokens"


def test_the_sampler_gets_the_answer_so_far(bundle: Path) -> None:
    shown: list[list[int]] = []

    def record(logits: np.ndarray, generated: object) -> int:
        shown.append(list(generated))  # type: ignore[call-overload]
        return len(shown)

    assert list(Generation(load_model(bundle), PROMPT, record, frozenset(), 3)) == [1, 2, 3]
    assert shown == [[], [1], [1, 2]]


def test_the_time_of_the_consumer_is_not_counted(bundle: Path) -> None:
    generation = Generation(load_model(bundle), PROMPT, greedy, frozenset(), 4)
    for _ in generation:
        time.sleep(0.2)
    assert generation.tokens_per_second > 5


def test_a_prompt_that_does_not_fit_fails_before_the_first_token(bundle: Path) -> None:
    with pytest.raises(AxzooError, match="has 16 tokens, but the context holds only 15"):
        next(iter(Generation(load_model(bundle), [1] * 16, greedy, frozenset())))
