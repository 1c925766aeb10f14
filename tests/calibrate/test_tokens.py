"""Tokens to calibrate with, from the tiny model and from texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from axzoo.calibrate import tokens as module
from axzoo.calibrate.parallel import in_parallel, single_core
from axzoo.calibrate.tokens import GROUP, LENGTH, generated_tokens, text_tokens
from axzoo.core.errors import AxzooError
from axzoo.model.oracle import Oracle
from axzoo.parts.checkpoint_oracle import checkpoint_oracle
from axzoo.tokenizer.local import load_tokenizer
from tiny_model import Built, Checkpoint


@pytest.fixture
def oracle(exact: Built) -> Oracle:
    return checkpoint_oracle(exact.locks, exact.source, LENGTH)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> int:
    """Sequences of a length that the tiny model says quickly."""
    monkeypatch.setattr(module, "LENGTH", 12)
    return 12


def test_the_model_says_the_same_on_any_number_of_cores(oracle: Oracle, short: int) -> None:
    cores = torch.get_num_threads()
    try:
        said = []
        for count in (1, 2):
            torch.set_num_threads(count)
            said.append(generated_tokens(oracle, 200, GROUP + 3))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(cores)
    assert torch.equal(*said)
    assert said[0].shape == (GROUP + 3, short)
    assert said[0][:, 0].max() < 200
    assert len({tuple(row) for row in said[0].tolist()}) == GROUP + 3
    assert torch.equal(generated_tokens(oracle, 200, GROUP), said[0][:GROUP])


def test_the_model_speaks_by_its_own_probabilities(
    checkpoint: Checkpoint, oracle: Oracle, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each choice is fed exactly the logits that transformers computes for what was said before."""
    seen: list[torch.Tensor] = []
    original = module._next_logits

    def noted(*arguments: object) -> torch.Tensor:
        seen.append(original(*arguments))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(module, "_next_logits", noted)
    said = generated_tokens(oracle, 200, 3)
    for row, ids in enumerate(said.tolist()):
        got = np.stack([logits[row].numpy() for logits in seen])
        np.testing.assert_allclose(got, checkpoint.logits(ids)[:-1], atol=1e-4)


def test_a_text_is_cut_into_sequences(checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = "The quick brown fox. " * 40
    (tmp_path / "text.txt").write_text(text)
    tokenizer = load_tokenizer(checkpoint.folder)
    found = text_tokens(tmp_path / "text.txt", tokenizer, 3)
    assert found.shape == (3, LENGTH)
    assert found.flatten().tolist() == tokenizer.encode(text)[: 3 * LENGTH]


def test_a_text_that_will_not_do(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path, tokenizer = tmp_path / "text.txt", load_tokenizer(checkpoint.folder)
    path.write_text("too short")
    with pytest.raises(AxzooError, match=r"text\.txt has 9 tokens and calibration_tokens asks for 512"):
        text_tokens(path, tokenizer, 2)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AxzooError, match="is not UTF-8"):
        text_tokens(path, tokenizer, 1)


def test_pieces_keep_their_order_and_see_one_core() -> None:
    with single_core():
        assert torch.get_num_threads() == 1
    assert in_parallel(lambda piece: (piece, torch.get_num_threads()), range(9)) == [(piece, 1) for piece in range(9)]
