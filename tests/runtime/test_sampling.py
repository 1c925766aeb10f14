from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from axzoo.core.errors import AxzooError
from axzoo.runtime.post_config import GREEDY, PostConfig, read_post_config
from axzoo.runtime.sampling import Adjustments, penalize, sample, top_k, top_logprobs, top_p

LOGITS = arrays(np.float32, st.integers(1, 40), elements=st.floats(-50, 50, width=32))


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_defaults_are_those_of_the_board() -> None:
    defaults = PostConfig()
    assert defaults == PostConfig(True, 0.9, False, 1.2, 20, False, 0.8, True, 10)


@given(LOGITS, st.integers(1, 50))
def test_top_k_keeps_the_k_best(logits: np.ndarray, k: int) -> None:
    ids, probabilities = top_k(logits, k)
    best = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k]
    assert ids.tolist() == best
    weights = [math.exp(float(logits[i]) - float(max(logits))) for i in best]
    np.testing.assert_allclose(probabilities, np.array(weights) / sum(weights), rtol=1e-6)


@given(LOGITS, st.floats(0.01, 1))
def test_top_p_keeps_the_fewest_that_reach_p(logits: np.ndarray, p: float) -> None:
    ids, kept = top_p(logits, p)
    weights = np.exp(logits.astype(np.float64) - logits.max())
    weights /= weights.sum()
    assert weights[ids].sum() >= p - 1e-9
    assert weights[ids[:-1]].sum() < p + 1e-9  # one of the two sums may round up to 1
    assert set(np.delete(weights, ids) <= weights[ids].min()) <= {True}
    np.testing.assert_allclose(kept, weights[ids] / weights[ids].sum(), rtol=1e-9)


def test_ties_go_to_the_smaller_id() -> None:
    logits = np.array([1, 2, 2, 2], np.float32)
    assert top_k(logits, 2)[0].tolist() == [1, 2]
    assert top_p(logits, 0.5)[0].tolist() == [1, 2]
    assert sample(logits, [], GREEDY, _rng()) == 1


def test_the_penalty_is_its_square_root_applied_once_per_token() -> None:
    logits = np.array([4, -4, 0, 4], np.float32)
    assert penalize(logits, [0, 0, 1, 2], 4.0).tolist() == [2, -8, 0, 4]
    assert logits.tolist() == [4, -4, 0, 4]
    assert penalize(logits, [], 4.0).tolist() == logits.tolist()


def test_the_penalty_covers_one_window() -> None:
    config = replace(GREEDY, enable_repetition_penalty=True, repetition_penalty=4.0, penalty_window=2)
    logits = np.array([5, 4, 3], np.float32)
    assert sample(logits, [0, 1, 2], config, _rng()) == 0
    assert sample(logits, [2, 1, 0], config, _rng()) == 2
    assert sample(logits, [0], replace(config, penalty_window=0), _rng()) == 0


def test_frequencies_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    rng = _rng()

    def shares(config: PostConfig) -> np.ndarray:
        return np.bincount([sample(logits, [], config, rng) for _ in range(4000)], minlength=4) / 4000

    plain = replace(GREEDY, enable_top_k_sampling=True, top_k=3)
    np.testing.assert_allclose(shares(plain), np.array([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.03)
    hot = replace(plain, enable_temperature=True, temperature=2.0, top_k=9)
    root = np.sqrt([0.5, 0.3, 0.15, 0.05])
    np.testing.assert_allclose(shares(hot), root / root.sum(), atol=0.03)
    nucleus = replace(plain, enable_top_p_sampling=True, top_p=0.75)  # top-p takes precedence over top-k
    np.testing.assert_allclose(shares(nucleus), [0.625, 0.375, 0, 0], atol=0.03)


def test_temperature_comes_before_top_p() -> None:
    logits = np.log(np.array([0.6, 0.4], np.float32))
    config = replace(GREEDY, enable_top_p_sampling=True, top_p=0.6, enable_temperature=True, temperature=0.5)
    assert top_p(logits, 0.6)[0].size == 2 or top_p(logits, 0.59)[0].size == 1
    assert {sample(logits, [], config, _rng(seed)) for seed in range(50)} == {0}  # at temperature 0.5: 0.69 and 0.31


def test_seeds_are_repeatable_and_logits_are_not_modified() -> None:
    logits = _rng().normal(size=1000).astype(np.float32)
    before = logits.copy()
    config = PostConfig(enable_repetition_penalty=True)
    first, second = _rng(7), _rng(7)
    assert [sample(logits, [1, 2], config, first) for _ in range(20)] == [
        sample(logits, [1, 2], config, second) for _ in range(20)
    ]
    assert np.array_equal(logits, before)


def test_nan_logits_are_refused() -> None:
    with pytest.raises(AxzooError, match="NaN logits: check the bundle with `axzoo verify BUNDLE --checks`"):
        sample(np.array([0, np.nan], np.float32), [], GREEDY, _rng())


def test_a_missing_file_gives_a_warning_and_greedy_decoding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_post_config(tmp_path / "post_config.json") == GREEDY
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "post_config.json is missing" in record.message


def test_omitted_keys_keep_their_defaults(tmp_path: Path) -> None:
    path = tmp_path / "post_config.json"
    path.write_text("{}")
    assert read_post_config(path) == PostConfig()
    path.write_text(json.dumps({"temperature": 1, "enable_top_p_sampling": True}))
    assert read_post_config(path) == PostConfig(temperature=1, enable_top_p_sampling=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"temperatur": 1}', "unknown key 'temperatur'"),
        ('{"temperature": 0}', "temperature must be above 0, not 0"),
        ('{"temperature": NaN}', "temperature must be above 0"),
        ('{"repetition_penalty": Infinity}', "repetition_penalty must be above 0"),
        ('{"temperature": true}', "temperature must be of type float, not True"),
        ('{"top_k": 0}', "top_k must be 1 or more"),
        ('{"top_k": 1.5}', "top_k must be of type int"),
        ('{"top_p": 1.1}', "top_p must be above 0 and at most 1"),
        ('{"penalty_window": -1}', "penalty_window must be 0 or more"),
        ('{"enable_temperature": 1}', "enable_temperature must be of type bool"),
        ("[]", "must hold a JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_invalid_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "post_config.json"
    path.write_text(text)
    with pytest.raises(AxzooError, match=message) as caught:
        read_post_config(path)
    assert str(path) in str(caught.value)


EXTREME = [1e-45, 1e-38, 1e-6, 1e-3, 1.0, 1e3, 3e38]
"""Values that fp32 can represent."""


@given(
    arrays(
        np.float32,
        st.integers(1, 20),
        elements=st.one_of(st.floats(allow_nan=False, allow_infinity=False, width=32), st.just(-np.inf)),
    ),
    st.sampled_from(EXTREME),
    st.sampled_from(EXTREME),
    st.booleans(),
    st.integers(0, 3),
)
def test_extreme_settings_never_give_nan(
    logits: np.ndarray, temperature: float, penalty: float, top_p: bool, recent: int
) -> None:
    logits[0] = 0.5  # at least one finite logit
    config = PostConfig(True, temperature, True, penalty, 20, top_p, 0.9, not top_p, 10)
    generated = [index % logits.size for index in range(recent)]
    with np.errstate(all="raise", under="ignore"):
        chosen = sample(logits, generated, config, _rng(), Adjustments(min_p=0.1, frequency_penalty=2.0))
    assert 0 <= chosen < logits.size


def test_a_temperature_near_zero_chooses_the_most_probable_token() -> None:
    logits = np.array([1, 3, 2.9999], np.float32)
    for temperature in (1e-45, 1e-38, 1e-6):
        assert {sample(logits, [], PostConfig(temperature=temperature), _rng(seed)) for seed in range(30)} == {1}


@pytest.mark.parametrize("key", ["temperature", "repetition_penalty"])
@pytest.mark.parametrize("value", [1e-300, 1e-46, 1e39, 1e300, math.inf, math.nan, 10**400, -(10**400), -1e-300, 0])
def test_numbers_are_checked_in_fp32(key: str, value: float) -> None:
    with pytest.raises(AxzooError, match=f"^{key} must be above 0( and finite in fp32)?, not .{{1,40}}$"):
        PostConfig(**{key: value})


@pytest.mark.parametrize("key", ["penalty_window", "top_k"])
@pytest.mark.parametrize("value", [10**400, 1 << 31, -1])
def test_whole_numbers_fit_the_board(key: str, value: int) -> None:
    with pytest.raises(AxzooError, match=f"^{key} must be . or more and below 2\\*\\*31, not .{{1,40}}$"):
        PostConfig(**{key: value})


PLAIN = replace(GREEDY, enable_top_p_sampling=True, top_p=1.0)


def _drawn(config: PostConfig, adjustments: Adjustments, generated: list[int] | None = None) -> set[int]:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    return {sample(logits, generated or [], config, _rng(seed), adjustments) for seed in range(200)}


def test_adjustments_limit_the_candidates() -> None:
    assert _drawn(PLAIN, Adjustments()) == {0, 1, 2, 3}
    assert _drawn(PLAIN, Adjustments(top_k=2)) == {0, 1}
    assert _drawn(replace(PLAIN, top_p=0.5), Adjustments(top_k=3)) == {0, 1}
    assert _drawn(PLAIN, Adjustments(min_p=0.4)) == {0, 1, 2}
    assert _drawn(replace(GREEDY, enable_top_k_sampling=True, top_k=4), Adjustments(min_p=0.7)) == {0, 1}


def test_penalties_and_bias_change_the_logits() -> None:
    assert _drawn(GREEDY, Adjustments(presence_penalty=1.0), [0, 0]) == {1}
    assert _drawn(GREEDY, Adjustments(frequency_penalty=0.2), [0]) == {0}
    assert _drawn(GREEDY, Adjustments(frequency_penalty=0.2), [0, 0]) == {1}
    assert _drawn(GREEDY, Adjustments(logit_bias={3: 100.0})) == {3}
    with pytest.raises(AxzooError, match="logit_bias: token ids must be below 4, not 4"):
        _drawn(GREEDY, Adjustments(logit_bias={4: 1.0}))


@given(LOGITS)
def test_logprobs_are_those_of_the_model(logits: np.ndarray) -> None:
    expected = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64) - logits.max()).sum()) - logits.max()
    chosen, best = top_logprobs(logits, len(logits) - 1, 3)
    assert chosen == pytest.approx(expected[-1], abs=1e-5)
    assert [token for token, _ in best] == top_k(logits, 3)[0].tolist()
    np.testing.assert_allclose([value for _, value in best], [expected[token] for token, _ in best], atol=1e-5)


def test_logprobs_of_impossible_tokens_are_finite() -> None:
    assert top_logprobs(np.array([0, -np.inf], np.float32), 1, 2) == (-9999.0, [(0, 0.0), (1, -9999.0)])
