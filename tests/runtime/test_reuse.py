"""Prompts behind one another against the same prompts alone: equal to the last bit where that is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_bundle import EXACT, VOCAB_SIZE, make_oracle, write_bundle

from axzoo.runtime.generate import Reuse
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
    """The logits behind the prompt and two more tokens."""
    return np.stack([model.prefill(ids[kept:]), model.decode(7), model.decode(9)])


@pytest.mark.parametrize(("mode", "turns"), [("exact", 15), ("fast", 120), ("fast-prompts", 120)])
def test_a_repeatable_answer_does_not_depend_on_what_came_before(folder: Path, mode: Mode, turns: int) -> None:
    """Conversations whose prompts share beginnings of any length, and hold answers that were decoded."""
    rng = np.random.default_rng(1)
    model, alone = load_model(folder, mode), load_model(folder, mode)
    reuse, kept, ids = Reuse(model), [], [0]
    for turn in range(turns):
        beginning = list(model.tokens if turn % 3 else ids[: int(rng.integers(len(ids)))])[:350]
        ids = [*beginning, *map(int, rng.integers(0, VOCAB_SIZE, rng.integers(1, 120)))]
        repeatable = bool(rng.random() < 0.7)
        kept.append(reuse.keep(ids, repeatable))
        found = _answer(model, ids, kept[-1])
        if repeatable:
            alone.reset()
            assert np.array_equal(found, _answer(alone, ids, 0)), (turn, len(ids), kept[-1])
        for token in map(int, rng.integers(0, VOCAB_SIZE, rng.integers(0, 40))):
            model.decode(token)
    assert sum(map(bool, kept)) > turns // 3


def test_chunks_are_kept_and_what_was_decoded_is_read_again(folder: Path) -> None:
    model = load_model(folder)
    reuse, chunk = Reuse(model), model.geometry.chunk_len
    first = [1] * (2 * chunk + 5)
    assert reuse.keep(first, True) == 0
    _answer(model, first, 0)
    turn = [*first, 7, 9, *[3] * chunk]
    assert reuse.keep(turn, True) == 2 * chunk
    _answer(model, turn, 2 * chunk)
    assert reuse.keep([*turn, 7, 9, 4], False) == len(turn) + 2
    assert reuse.keep(first[:-5], True) == chunk  # the last token is read in any case


def test_a_prompt_torn_midway_leaves_no_chunk_behind(folder: Path) -> None:
    model = load_model(folder)
    reuse, chunk = Reuse(model), model.geometry.chunk_len
    ids = [1] * (2 * chunk + 5)

    def interrupt(_layer: int, position: int, _hidden: object) -> None:
        if position >= chunk:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.prefill(ids[reuse.keep(ids, True) :], interrupt)
    assert reuse.keep(ids, True) == 0
