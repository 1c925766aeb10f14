"""Chunked prefill and cached decode against a transformers model that reads each text from the start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from tiny_bundle import CHUNK, CONTEXT, EXACT, LAYERS, VOCAB_SIZE, Oracle

from axzoo.core.errors import AxzooError
from axzoo.runtime.bundle_folder import open_bundle
from axzoo.runtime.model import Model, load_files, load_model
from axzoo.weights.recipe import Recipe

DECODE_ONLY = replace(EXACT, prefill_len=0, last_kv_cache_len=())
BuildBundle = Callable[[Recipe], Path]
IDS = [int(i) for i in np.random.default_rng(0).integers(0, VOCAB_SIZE, CONTEXT)]


def _assert_logits(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert found.shape == (VOCAB_SIZE,)
    assert found.dtype == np.float32
    assert_allclose(found, expected, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("recipe", [EXACT, DECODE_ONLY], ids=["prefill groups", "decode only"])
@pytest.mark.parametrize("length", range(1, 3 * CHUNK + 1))
def test_a_prompt_of_any_length_then_decode(
    build_bundle: BuildBundle, oracle: Oracle, recipe: Recipe, length: int
) -> None:
    model = load_model(build_bundle(recipe))
    _assert_logits(model.prefill(IDS[:length]), oracle.logits(IDS[:length]))
    for end in range(length + 1, CONTEXT + 1):
        _assert_logits(model.decode(IDS[end - 1]), oracle.logits(IDS[:end]))
    assert model.is_full


@pytest.mark.parametrize("first", range(1, 9))
def test_a_second_prompt_after_the_first(bundle: Path, oracle: Oracle, first: int) -> None:
    model = load_model(bundle)
    model.prefill(IDS[:first])
    _assert_logits(model.prefill(IDS[first : first + CHUNK]), oracle.logits(IDS[: first + CHUNK]))
    _assert_logits(model.decode(IDS[first + CHUNK]), oracle.logits(IDS[: first + CHUNK + 1]))


def test_prefill_up_to_the_end_of_the_context(build_bundle: BuildBundle, oracle: Oracle) -> None:
    """The groups reach one token beyond the caches, as with kv_cache_len 1023 and eight groups of 128."""
    model = load_model(build_bundle(replace(EXACT, last_kv_cache_len=(CHUNK, 2 * CHUNK, 3 * CHUNK))))
    assert model.geometry.prefill_groups == 4
    _assert_logits(model.prefill(IDS), oracle.logits(IDS))
    assert model.is_full


def test_a_topk_post_layer(build_bundle: BuildBundle, bundle: Path) -> None:
    """Its tokens have log probabilities; all others have -inf."""
    full, topk = load_model(bundle), load_model(build_bundle(replace(EXACT, post_topk=5)))
    for ids in (IDS[:3], IDS[3:11]):
        logits, found = full.prefill(ids).astype(np.float64), topk.prefill(ids)
        best = np.argsort(-logits)[:5]
        assert list(np.flatnonzero(np.isfinite(found))) == sorted(best)
        assert_allclose(found[best], (logits - np.log(np.exp(logits).sum()))[best], atol=1e-5)
        assert found.argmax() == logits.argmax()


@pytest.mark.parametrize("first", [0, 3, 9])
def test_a_prompt_beyond_the_prefill_groups_is_finished_one_token_at_a_time(
    bundle: Path, oracle: Oracle, first: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The groups reach 12 tokens, the context 15. After 9 tokens, no group has a cache that is long enough."""
    model = load_model(bundle)
    caplog.set_level("INFO", "axzoo")
    if first:
        model.prefill(IDS[:first])
    _assert_logits(model.prefill(IDS[first:]), oracle.logits(IDS))
    count = {0: 3, 3: 4, 9: 6}[first]
    assert caplog.messages == [f"the last {count} prompt tokens are beyond the prefill groups: reading one by one"]
    assert model.is_full


def test_a_model_without_prefill_groups_logs_nothing(
    build_bundle: BuildBundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "axzoo")
    load_model(build_bundle(DECODE_ONLY)).prefill(IDS)
    assert caplog.messages == []


@pytest.mark.parametrize("length", range(CONTEXT))
def test_rewinding_keeps_the_first_tokens(bundle: Path, oracle: Oracle, length: int) -> None:
    model = load_model(bundle)
    model.prefill(IDS[::-1][:2] if length == 0 else IDS[:12])
    for token in IDS[12:14] if length else ():
        model.decode(token)
    model.rewind(length)
    kept = min(length, 14)
    assert (model.used, model.tokens) == (kept, tuple(IDS[:kept]))
    _assert_logits(model.prefill(IDS[kept:CONTEXT]), oracle.logits(IDS))


@pytest.mark.parametrize("at", range(1, 12))
def test_rewinding_restores_the_context_after_an_interrupt(bundle: Path, oracle: Oracle, at: int) -> None:
    """Ctrl-C between any two layers of a prompt in three chunks and a decoded token."""
    model = load_model(bundle)
    model.prefill(IDS[:2])
    calls: list[int] = []

    def interrupt(_layer: int, _position: int, _hidden: object) -> None:
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.prefill(IDS[2:10][::-1], interrupt)
        model.decode(1, interrupt)
        model.decode(1, interrupt)
    model.rewind(2)
    _assert_logits(model.prefill(IDS[2:9]), oracle.logits(IDS[:9]))
    _assert_logits(model.decode(IDS[9]), oracle.logits(IDS[:10]))


def test_layers_on_demand_and_an_embedding_in_memory_give_the_same(bundle: Path) -> None:
    files = open_bundle(bundle)
    default, frugal = load_files(files), load_files(files, mmap_embedding=False, layers_on_demand=True)
    assert frugal.geometry == default.geometry
    for ids in (IDS[:3], IDS[3:11]):
        assert np.array_equal(frugal.prefill(ids), default.prefill(ids))
    assert np.array_equal(frugal.decode(5), default.decode(5))


def test_reset_clears_the_context(bundle: Path, oracle: Oracle) -> None:
    model = load_model(bundle)
    model.prefill(IDS[3:12])
    model.decode(1)
    model.reset()
    assert model.used == 0
    _assert_logits(model.prefill(IDS[:5]), oracle.logits(IDS[:5]))
    _assert_logits(model.decode(IDS[5]), oracle.logits(IDS[:6]))


def test_the_hook_gets_the_hidden_states_of_every_layer(bundle: Path, oracle: Oracle) -> None:
    recorded: dict[tuple[int, int], NDArray[np.float32]] = {}

    def hook(layer: int, position: int, hidden: NDArray[np.float32]) -> None:
        for row, state in enumerate(hidden):
            assert (layer, position + row) not in recorded
            recorded[layer, position + row] = state.copy()

    model = load_model(bundle)
    model.prefill(IDS[:6], hook)
    model.decode(IDS[6], hook)
    assert set(recorded) == {(layer, position) for layer in range(LAYERS) for position in range(7)}
    for layer, expected in enumerate(oracle.hidden(IDS[:7])):
        for position in range(7):
            assert_allclose(recorded[layer, position], expected[position], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("state", ["bf16", "fp16"])
def test_16_bit_hidden_states_come_close(build_bundle: BuildBundle, oracle: Oracle, state: str) -> None:
    """Padding rows are fully masked; in fp16, a mask of -inf would give NaN there."""
    model = load_model(build_bundle(replace(EXACT, hidden_state_type=state)))
    for found, expected in (
        (model.prefill(IDS[:6]), oracle.logits(IDS[:6])),
        (model.decode(IDS[6]), oracle.logits(IDS[:7])),
    ):
        assert np.corrcoef(found, expected)[0, 1] > 0.999


def test_geometry_matches_the_board(bundle: Path, build_bundle: BuildBundle) -> None:
    geometry = load_model(bundle).geometry
    assert (geometry.max_token_len, geometry.kv_cache_num, geometry.kv_cache_size) == (CONTEXT, CONTEXT, 16)
    assert (geometry.prefill_token_num, geometry.prefill_groups) == (CHUNK, 3)
    assert load_model(build_bundle(DECODE_ONLY)).geometry.prefill_groups == 0


def test_invalid_prompts_are_refused(bundle: Path, build_bundle: BuildBundle) -> None:
    def assert_refused(model: Model, ids: list[int], message: str) -> None:
        used = model.used
        with pytest.raises(AxzooError, match=message):
            model.prefill(ids)
        assert model.used == used

    model = load_model(bundle)
    assert_refused(model, [], "the prompt is empty")
    assert_refused(model, [*IDS, 1], "has 16 tokens, but the context holds only 15: shorten the prompt, or build")
    assert_refused(model, [VOCAB_SIZE], f"token id {VOCAB_SIZE} is out of range")
    assert_refused(model, [-1], "token id -1 is out of range")
    model.prefill(IDS[:9])
    assert_refused(
        model,
        [1] * 7,
        "has 16 tokens, 9 of them cached, but the context holds only 15: .* reset",
    )
    for _ in range(6):
        model.decode(1)
    with pytest.raises(AxzooError, match="the context is full: it holds 15 tokens"):
        model.decode(1)
    assert_refused(load_model(build_bundle(DECODE_ONLY)), [*IDS, 1], "context holds only 15")


def test_files_that_do_not_match_are_refused(bundle: Path, build_bundle: BuildBundle, tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(bundle, tmp_path / "mixed"))
    other = build_bundle(replace(EXACT, kv_cache_len=20))
    shutil.copy(other / "llama_p4_l1_together.axmodel", mixed)
    with pytest.raises(AxzooError, match="layer 1 does not match layer 0"):
        load_model(mixed)
    wrong = Path(shutil.copytree(bundle, tmp_path / "wrong"))
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(
        json.dumps({**config, "tokens_embed_num": VOCAB_SIZE * 2, "tokens_embed_size": 16})
    )
    with pytest.raises(AxzooError, match="has hidden_size 32, but the embedding has 16"):
        load_model(wrong)


def test_on_step_is_called_for_every_file(bundle: Path) -> None:
    steps: list[int] = []
    load_model(bundle, on_step=lambda: steps.append(1))
    assert len(steps) == LAYERS + 2
