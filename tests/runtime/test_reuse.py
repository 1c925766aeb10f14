"""Prompts that reuse a cached prefix against the same prompts in an empty context: bit-identical if repeatable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_bundle import EXACT, VOCAB_SIZE, make_oracle, write_bundle

from axzoo.runtime.generate import PrefixReuse
from axzoo.runtime.model import Mode, Model, load_model
from axzoo.weights.recipe import Recipe

CONTEXT = 511
S8 = replace(EXACT, weight_type="s8", post_weight_type="s8", hidden_state_type="bf16", kv_cache_len=CONTEXT)
RECIPES = {
    "groups of 32 that reach 128": replace(S8, prefill_len=32, last_kv_cache_len=(32, 64, 96)),
    "no groups": replace(S8, prefill_len=0, last_kv_cache_len=()),
}


@pytest.fixture(scope="module", params=RECIPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reuse")
    recipe: Recipe = RECIPES[request.param]
    write_bundle(make_oracle(CONTEXT + 1), recipe, folder)
    return folder


def _answer(model: Model, ids: list[int], kept: int) -> NDArray[np.float32]:
    """Return the logits after the prompt and after each of two more tokens."""
    return np.stack([model.prefill(ids[kept:]), model.decode(7), model.decode(9)])


@pytest.mark.parametrize(("mode", "turns"), [("exact", 15), ("fast", 120), ("fast-prompts", 120)])
def test_a_repeatable_answer_does_not_depend_on_what_came_before(folder: Path, mode: Mode, turns: int) -> None:
    """Conversations whose prompts share prefixes of any length and contain decoded answers."""
    rng = np.random.default_rng(1)
    model, fresh = load_model(folder, mode), load_model(folder, mode)
    reuse, kept, ids = PrefixReuse(model), [], [0]
    for turn in range(turns):
        prefix = list(model.tokens if turn % 3 else ids[: int(rng.integers(len(ids)))])[:350]
        ids = [*prefix, *map(int, rng.integers(0, VOCAB_SIZE, rng.integers(1, 120)))]
        repeatable = bool(rng.random() < 0.7)
        kept.append(reuse.rewind(ids, repeatable))
        found = _answer(model, ids, kept[-1])
        if repeatable:
            fresh.reset()
            assert np.array_equal(found, _answer(fresh, ids, 0)), (turn, len(ids), kept[-1])
        for token in map(int, rng.integers(0, VOCAB_SIZE, rng.integers(0, 40))):
            model.decode(token)
    assert sum(map(bool, kept)) > turns // 3


def test_whole_chunks_are_reused_and_decoded_tokens_are_read_again(folder: Path) -> None:
    model = load_model(folder)
    reuse, chunk = PrefixReuse(model), model.geometry.chunk_len
    first = [1] * (2 * chunk + 5)
    assert reuse.rewind(first, True) == 0
    _answer(model, first, 0)
    turn = [*first, 7, 9, *[3] * chunk]
    assert reuse.rewind(turn, True) == 2 * chunk
    _answer(model, turn, 2 * chunk)
    assert reuse.rewind([*turn, 7, 9, 4], False) == len(turn) + 2
    assert reuse.rewind(first[:-5], True) == chunk  # the last token is always read


def test_an_interrupted_prompt_leaves_no_chunk(folder: Path) -> None:
    model = load_model(folder)
    reuse, chunk = PrefixReuse(model), model.geometry.chunk_len
    ids = [1] * (2 * chunk + 5)

    def interrupt(_layer: int, position: int, _hidden: object) -> None:
        if position >= chunk:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.prefill(ids[reuse.rewind(ids, True) :], interrupt)
    assert reuse.rewind(ids, True) == 0
