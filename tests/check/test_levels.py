"""Both check levels on a real bundle, intact and broken: the checks must be able to fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from axzoo.bundle.completion import complete_bundle
from axzoo.bundle.manifest import read_manifest
from axzoo.check.cost import cost_of
from axzoo.check.fidelity import greedy_agreement, text_fidelity
from axzoo.check.generation import GenerationCheck, GenerationLog, compare_answer, generate_answer
from axzoo.check.layers import LayerCheck, check_layers, prompt_ids
from axzoo.check.oracles import bundle_oracle, in_memory
from axzoo.core.errors import AxzooError
from axzoo.model.oracle import Oracle
from axzoo.parts.checkpoint_oracle import checkpoint_oracle
from axzoo.runtime.bundle_folder import open_bundle
from axzoo.runtime.model import Model, load_model
from axzoo.tokenizer.local import load_tokenizer
from axzoo.weights.formats import BF16, FLOAT, S4, S8
from axzoo.weights.recipe import Recipe
from tiny_model import EXACT, LAYERS, Built, Checkpoint

LOG = GenerationLog(LAYERS)
IDS = [int(i) for i in np.random.default_rng(3).integers(0, 256, 20)]


def _complete(built: Built, folder: Path) -> Path:
    moved = built.moved(folder)
    complete_bundle(moved.plan)
    return folder


@pytest.fixture
def bundle(s8: Built, tmp_path: Path) -> Path:
    return _complete(s8, tmp_path / "tiny-w8a16")


@pytest.fixture
def oracle(s8: Built) -> Oracle:
    return in_memory(checkpoint_oracle(s8.locks, s8.source, s8.recipe.positions))


def stored_oracle(folder: Path) -> Oracle:
    return in_memory(bundle_oracle(folder))


def _check(folder: Path, oracle: Oracle, max_tokens: int, model: Model | None = None) -> GenerationCheck:
    tokenizer = load_tokenizer(folder / "tokenizer")
    answer = generate_answer(model or load_model(folder), tokenizer, IDS, max_tokens, LOG)
    return compare_answer(answer, tokenizer, oracle, stored_oracle(folder))


def oracle_hidden(oracle: Oracle, ids: list[int]) -> np.ndarray:
    """The last layer's output [n, hidden_size] for all tokens."""
    state = oracle.embed(ids)
    for index in range(LAYERS):
        state, _ = oracle.layer(index, state)
    return state.numpy()


def level_1(folder: Path, oracle: Oracle, ids: list[int] = IDS) -> list[LayerCheck]:
    return list(check_layers(open_bundle(folder), oracle, ids, read_manifest(folder).recipe))


def test_a_good_s8_bundle_passes_level_1(bundle: Path, oracle: Oracle) -> None:
    checks = level_1(bundle, oracle)
    assert [check.layer for check in checks] == list(range(LAYERS))
    for check in checks:
        assert check.faults == ()
        assert check.exceeds(S8) == []
        assert check.closeness is not None
        assert check.closeness.worst < 1
        for found in (check.prefill, check.decode):
            assert found is not None
            assert 0.999 < found.cosine < 1
            assert 0 < found.delta_l2 < 0.06
            assert found.delta_l2 <= found.delta_l2_p95 < 0.12
            assert found.max_abs > 0


def test_the_second_layer_has_the_first_ones_graph_and_need_not_run_every_group(bundle: Path, oracle: Oracle) -> None:
    first, second = level_1(bundle, oracle, IDS[:5])
    assert (first.groups, first.same_graph_as) == ((0, 1, 2, 3), None)
    assert (second.groups, second.same_graph_as) == ((0, 1), 0)


def test_an_exact_bundle_has_almost_no_error(
    build_tiny: Callable[[Recipe], Built], oracle: Oracle, tmp_path: Path
) -> None:
    folder = _complete(build_tiny(EXACT), tmp_path / "exact")
    for check in level_1(folder, oracle):
        assert check.faults == ()
        assert check.exceeds(FLOAT) == []
        assert check.prefill is not None
        assert check.decode is not None
        assert max(check.prefill.delta_l2_p95, check.decode.delta_l2_p95) < 1e-5
        assert max(check.prefill.max_abs, check.decode.max_abs) < 1e-4


def test_massive_tokens_are_named_and_do_not_count() -> None:
    """Activations in the thousands, as of first tokens, are rounded to multiples of 16; the layer adds 1 to each."""
    rng = np.random.default_rng(0)
    given = torch.from_numpy(rng.standard_normal((4, 64)).astype(np.float32))
    given[0] *= 4096
    want = given + torch.from_numpy(rng.standard_normal((4, 64)).astype(np.float32))
    found = cost_of(given, want.bfloat16().float(), want, "bf16", first=3)
    assert found.massive_tokens == (3,)
    assert found.exceeds(BF16) == []
    alone = cost_of(given[:1], want[:1].bfloat16().float(), want[:1], "bf16")
    assert alone.exceeds(BF16) == ["max_delta_l2", "max_delta_l2_p95"]


def test_a_median_does_not_hide_tokens_that_lose_their_delta() -> None:
    """Nine of twenty tokens."""
    rng = np.random.default_rng(0)
    given, delta = (torch.from_numpy(rng.standard_normal((20, 64)).astype(np.float32)) for _ in range(2))
    got = given + delta * (torch.arange(20) >= 9)[:, None]
    found = cost_of(given, got, given + delta, "bf16")
    assert (found.delta_l2, found.delta_l2_p95) == (0, 1)
    assert found.exceeds(S8) == ["min_layer_cosine", "max_delta_l2_p95"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_exceeds_the_thresholds(value: float) -> None:
    rng = np.random.default_rng(0)
    given, want = (torch.from_numpy(rng.standard_normal((20, 64)).astype(np.float32)) for _ in range(2))
    for token in (0, 7, 19):
        got = want.clone()
        got[token, 3] = value
        assert "min_layer_cosine" in cost_of(given, got, want, "bf16").exceeds(S4)


def test_exchanged_layers_fail_level_1(bundle: Path, oracle: Oracle) -> None:
    first, second = open_bundle(bundle).layers
    first.rename(bundle / "kept")
    shutil.copy(second, first)
    broken, sound = level_1(bundle, oracle)
    assert len(broken.faults) >= 9  # every matrix and both norms
    assert sound.faults == ()
    assert broken.exceeds(S4)


def test_one_wrong_matrix_fails_level_1(bundle: Path, oracle: Oracle) -> None:
    """Scales that are 10 % off, an error that the cosine of the whole residual stream does not reveal."""
    path = open_bundle(bundle).layers[1]
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "down_proj.scale":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.1), tensor.name))
    path.unlink()
    onnx.save(model, path)
    sound, broken = level_1(bundle, oracle)
    assert sound.faults == ()
    (fault,) = broken.faults
    assert fault.startswith("down_proj.weight has scales that do not fit the checkpoint in 32 of 32 rows")


def test_short_prompts_reach_every_group(bundle: Path, oracle: Oracle) -> None:
    for count in (1, 2, 9):
        checks = level_1(bundle, oracle, IDS[:count])
        assert [check.faults for check in checks] == [(), ()]
        assert checks[0].groups == (0, 1, 2, 3)
        assert (checks[0].prefill is None) == (count == 1)
    with pytest.raises(AxzooError, match="level 1 needs a prompt of at least one token"):
        level_1(bundle, oracle, [])


def test_level_2_compares_every_token_with_the_oracle(bundle: Path, oracle: Oracle, checkpoint: Checkpoint) -> None:
    tokenizer = load_tokenizer(bundle / "tokenizer")
    check = _check(bundle, oracle, 6)
    assert 1 <= len(check.steps) <= 6
    tokens = [step.token for step in check.steps]
    wanted = checkpoint.logits([*IDS, *tokens])[len(IDS) - 1 : -1]
    assert [step.oracle_token for step in check.steps] == wanted.argmax(-1).tolist()
    assert check.top1_agreement == np.mean([step.token == step.oracle_token for step in check.steps])
    assert check.mean_kl == pytest.approx(np.mean([step.kl for step in check.steps]))
    assert 0 < check.mean_kl < S8.max_mean_kl
    for step in check.steps:
        probabilities = [probability for _, probability in step.candidates]
        assert len(probabilities) == 10
        assert probabilities == sorted(probabilities, reverse=True)
        assert step.candidates[0][0] == step.text
    prefill, *decoded = check.steps
    chunks = [(0, 8), (8, 8), (16, 4)]  # of the 20 tokens, by prefill groups of 8
    assert [(state.layer, state.start_indice, state.tokens) for state in prefill.hidden_states] == [
        (layer, *chunk) for chunk in chunks for layer in range(LAYERS)
    ]
    assert [step.start_indice for step in check.steps] == [0, *range(20, 20 + len(decoded))]
    for step in decoded:
        assert [(state.layer, state.start_indice, state.tokens) for state in step.hidden_states] == [
            (layer, step.start_indice, 1) for layer in range(LAYERS)
        ]
    last = oracle_hidden(oracle, IDS)
    assert np.allclose(prefill.hidden_states[-1].values, last[-1, :5], atol=0.15)
    assert prefill.hidden_states[-1].rms == pytest.approx(np.sqrt(np.square(last[16:]).mean()), rel=0.01)
    assert check.hit_eos == (tokens[-1] in tokenizer.eos_token_ids)
    assert check.conversation == tokenizer.decode([*IDS, *tokens], False)
    assert check.compared_tokens == 262
    assert (check.faults("bf16", S8, None), check.exceeds(S8)) == ([], {})
    assert 0 < check.stored_mean_kl < check.mean_kl


def test_level_2_with_a_post_layer_that_returns_top_k(
    build_tiny: Callable[[Recipe], Built], oracle: Oracle, tmp_path: Path
) -> None:
    folder = _complete(build_tiny(replace(EXACT, post_topk=4)), tmp_path / "topk")
    check = _check(folder, oracle, 6)
    assert check.compared_tokens == 4
    assert (check.top1_agreement, check.faults("fp32", FLOAT, None), check.exceeds(FLOAT)) == (1, [], {})
    assert check.mean_kl < 1e-6
    for step in check.steps:
        assert len(step.candidates) == 4
        assert sum(probability for _, probability in step.candidates) == pytest.approx(1)


def test_level_1_of_a_decode_only_bundle_has_no_prefill(
    build_tiny: Callable[[Recipe], Built], oracle: Oracle, tmp_path: Path
) -> None:
    folder = _complete(build_tiny(Recipe(prefill_len=0, kv_cache_len=31)), tmp_path / "decoder")
    for check in level_1(folder, oracle):
        assert check.prefill is None
        assert check.decode is not None
        assert 0.999 < check.decode.cosine < 1  # of all 20 tokens
        assert (check.faults, check.exceeds(S8)) == ((), [])


def test_level_2_reports_what_failed(bundle: Path, oracle: Oracle) -> None:
    check = _check(bundle, oracle, 4)
    assert check.faults("bf16", S8, check.answer[:1]) == []
    (missing,) = check.faults("bf16", S8, "Paris is not what this model says")
    assert "does not contain 'Paris is not what this model says'" in missing
    strict = replace(S8, max_mean_kl=0.0, min_top1_agreement=1.1)
    assert check.exceeds(strict) == {
        "max_mean_kl": f"mean KL divergence {check.mean_kl:.4f} is above 0.0",
        "min_top1_agreement": f"top-1 agreement {check.top1_agreement:.3f} is below 1.1",
    }
    overflow = replace(check, mean_kl=float("nan"), stored_mean_kl=float("nan"))
    assert overflow.faults("bf16", S8, None) == ["the logits are not finite"]
    assert list(overflow.exceeds(S8)) == ["max_mean_kl"]
    (wrong,) = replace(check, stored_mean_kl=0.3).faults("bf16", S8, None)
    assert wrong == "mean KL divergence from the oracle on the files' own weights is 0.3000, above 0.2"


def test_level_2_detects_a_broken_layer(bundle: Path, oracle: Oracle) -> None:
    first, second = open_bundle(bundle).layers
    first.unlink()
    shutil.copy(second, first)
    check = _check(bundle, oracle, 6)
    (fault,) = check.faults("bf16", S8, None)  # the files compute what they store, so only the cost shows it
    assert fault == f"mean KL divergence {check.mean_kl:.4f} is more than quantization costs: another model's files?"


def test_level_2_stops_at_the_end_of_the_context(bundle: Path, oracle: Oracle) -> None:
    model = load_model(bundle)
    check = _check(bundle, oracle, 1000, model)
    assert check.hit_eos or model.is_full
    assert len(IDS) + len(check.steps) <= model.geometry.max_token_len + 1


def test_prompts_are_a_user_message_or_raw_text(bundle: Path) -> None:
    tokenizer = load_tokenizer(bundle / "tokenizer")
    assert tokenizer.decode(prompt_ids(tokenizer, "Hi", chat=True), False) == "<user>Hi"
    assert tokenizer.decode(prompt_ids(tokenizer, "Hi", chat=False), False) == "Hi"


def test_fidelity_of_a_text(
    bundle: Path, build_tiny: Callable[[Recipe], Built], oracle: Oracle, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    exact = text_fidelity(load_model(_complete(build_tiny(EXACT), tmp_path / "exact")), oracle.logits(IDS).numpy(), IDS)
    assert (exact.tokens, exact.top1_agreement) == (20, 1)
    assert exact.mean_kl < 1e-8
    logits = checkpoint.logits(IDS).astype(np.float64)
    losses = [np.log(np.exp(row).sum()) - row[token] for row, token in zip(logits[:-1], IDS[1:], strict=True)]
    assert exact.oracle_perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)
    assert exact.built_perplexity == pytest.approx(exact.oracle_perplexity, rel=1e-4)
    short = text_fidelity(load_model(bundle), oracle.logits(IDS).numpy(), IDS)
    assert short.oracle_perplexity == exact.oracle_perplexity
    assert exact.mean_kl < short.mean_kl < 0.05


def test_greedy_agreement(bundle: Path, build_tiny: Callable[[Recipe], Built], oracle: Oracle, tmp_path: Path) -> None:
    exact = load_model(_complete(build_tiny(EXACT), tmp_path / "exact"))
    agreement = greedy_agreement(exact, oracle, IDS, 8, ends=())
    assert (agreement.agreed, agreement.tokens) == (8, 8)
    tokens = [token for token, _ in oracle.greedy(IDS, 8)]
    stop = greedy_agreement(exact, oracle, IDS, 8, ends={tokens[2]})
    assert stop.agreed == stop.tokens == tokens.index(tokens[2]) + 1
    first, second = open_bundle(bundle).layers
    first.unlink()
    shutil.copy(second, first)
    broken = greedy_agreement(load_model(bundle), oracle, IDS, 8, ends=())
    assert broken.agreed < 8
    assert broken.margin > 0
