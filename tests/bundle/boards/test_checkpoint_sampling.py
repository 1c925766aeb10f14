"""post_config.json from generation_config.json."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from axzoo.bundle.boards.checkpoint_sampling import checkpoint_sampling
from axzoo.runtime.post_config import GREEDY, PostConfig

BOARD = PostConfig()


def sampling(folder: Path, **values: Any) -> PostConfig:
    (folder / "generation_config.json").write_text(json.dumps(values))
    return checkpoint_sampling(folder)


def test_without_a_file_the_boards_settings_apply(tmp_path: Path) -> None:
    assert checkpoint_sampling(tmp_path) == BOARD


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"eos_token_id": 2, "bos_token_id": 1},
        {"do_sample": False, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
        {"temperature": 0.6, "top_p": 0.9},
        {"do_sample": None, "top_k": 20},
        {"do_sample": True, "temperature": 0},
        {"do_sample": True, "temperature": 0.0, "top_p": 0.9},
    ],
)
def test_greedy_where_transformers_is(tmp_path: Path, values: dict[str, Any]) -> None:
    assert sampling(tmp_path, **values) == GREEDY
    if values.get("temperature") != 0:
        assert not GenerationConfig(**values).do_sample


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        ({}, {}),
        ({"temperature": 0.6}, {"temperature": 0.6}),
        ({"temperature": 1}, {"temperature": 1}),
        ({"top_k": 50}, {"top_k": 50}),
        ({"top_k": 50.0}, {"top_k": 50}),
        ({"top_p": 0.95}, {"enable_top_p_sampling": True, "top_p": 0.95, "enable_top_k_sampling": False}),
        ({"top_p": 0.8, "top_k": 20}, {"enable_top_p_sampling": True, "top_k": 20}),
        ({"top_p": 1.0}, {"top_p": 1.0}),
        ({"top_p": 1.0, "top_k": 40}, {"top_p": 1.0, "top_k": 40}),
        ({"top_k": 0}, {"enable_top_p_sampling": True, "top_p": 1.0, "enable_top_k_sampling": False}),
        ({"top_k": 0, "top_p": 0.9}, {"enable_top_p_sampling": True, "top_p": 0.9, "enable_top_k_sampling": False}),
        ({"top_p": None, "top_k": None, "temperature": None}, {}),
        ({"repetition_penalty": 1.05}, {"enable_repetition_penalty": True, "repetition_penalty": 1.05}),
        ({"repetition_penalty": 1.0}, {"repetition_penalty": 1.0}),
    ],
)
def test_settings_of_a_checkpoint_that_samples(tmp_path: Path, values: dict[str, Any], changes: dict[str, Any]) -> None:
    """What it does not say is the board's."""
    assert sampling(tmp_path, do_sample=True, **values) == PostConfig(**{**vars(BOARD), **changes})


def test_published_settings_of_qwen2(tmp_path: Path) -> None:
    values = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    assert sampling(tmp_path, **values) == PostConfig(
        temperature=0.7, enable_top_p_sampling=True, top_p=0.8, top_k=20, enable_repetition_penalty=True,
        repetition_penalty=1.05,
    )  # fmt: skip


def test_a_greedy_checkpoint_keeps_its_repetition_penalty(tmp_path: Path) -> None:
    config = sampling(tmp_path, repetition_penalty=1.1)
    assert (config.enable_repetition_penalty, config.repetition_penalty, config.is_random) == (True, 1.1, False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "0.7"),
        ("temperature", -1),
        ("temperature", 1e40),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_p", [0.9]),
        ("top_k", -5),
        ("top_k", 2.5),
        ("top_k", 1 << 40),
        ("repetition_penalty", 0),
        ("repetition_penalty", {}),
    ],
)
def test_a_value_that_the_board_cannot_use_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, value: Any
) -> None:
    with caplog.at_level(logging.WARNING):
        assert sampling(tmp_path, do_sample=True, **{key: value}) == BOARD
    (record,) = caplog.records
    assert f"generation_config.json: {key} must be" in record.getMessage()
