"""made_from.json shows whether a lock is up to date."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from axzoo.fetch import fetch
from axzoo.fetch.sources import FolderSource
from axzoo.matrix import lock_state as made_from
from axzoo.matrix.build import Build
from axzoo.matrix.comparison import Comparison
from axzoo.matrix.entries import load_zoo
from axzoo.matrix.lock_state import MADE_FROM, facts, write_made_from
from axzoo.parts.kinds import part_ids

CHIPS = Path(__file__).parents[2] / "config/chips.yaml"
SIZES = {"layer": 1000, "post": 2000, "kv_width": 64}


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A build with a local checkpoint that has been fetched and locked."""
    monkeypatch.chdir(tmp_path)
    checkpoint = Path("checkpoint")
    checkpoint.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (checkpoint / name).write_text(name)
    Path("override.json").write_text("{}")
    entry = {"path": "checkpoint", "model_type": "llama", "num_hidden_layers": 2, "model_config": "override.json"}
    Path("zoo.yaml").write_text(json.dumps({"defaults": {"chips": ["AX650"]}, "models": {"tiny": entry}}))
    (build,) = load_zoo(Path("zoo.yaml"), CHIPS).builds()
    build = replace(build, sizes=tuple(SIZES.items()))
    past = time.time_ns() - 10**9
    for path in (*checkpoint.iterdir(), checkpoint):
        os.utime(path, ns=(past, past))
    fetch(build.source, build.checkpoint)
    build.locks.mkdir(parents=True)
    for path in build.lock_files:
        Path(path).write_text("{}")
    of_model = build.model_type, build.num_hidden_layers, build.ignore_config_keys, build.ignore_tensors
    made_from = facts(build.checkpoint / "source.json", *of_model, Path("override.json"), SIZES)
    write_made_from(build.locks, made_from, part_ids(build))
    return build


def is_locked(build: Build) -> bool:
    return Comparison([build]).is_locked(build)


def test_lock_is_up_to_date(build: Build) -> None:
    assert is_locked(build)


@pytest.mark.parametrize(
    "change",
    [
        lambda build: (build.locks / MADE_FROM).unlink(),
        lambda build: (build.locks / MADE_FROM).write_text("{"),
        lambda build: (build.locks / "layer_1.json").unlink(),
        lambda build: (build.checkpoint / "source.json").write_text("{}"),
        lambda build: (build.checkpoint / "source.json").unlink(),
        lambda build: Path("override.json").write_text('{"rope_theta": 1}'),
        lambda build: Path("override.json").unlink(),
        lambda build: Path("checkpoint/model.safetensors").touch(),
        lambda build: Path("checkpoint/model.safetensors").write_text("another length"),
        lambda build: Path("checkpoint/merges.txt").touch(),
        lambda build: Path("checkpoint/tokenizer.json").unlink(),
        lambda build: Path("checkpoint").rename("elsewhere"),
    ],
)
def test_changed_file_makes_the_lock_outdated(build: Build, change: Callable[[Build], object]) -> None:
    change(build)
    assert not is_locked(build)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "qwen2"},
        {"num_hidden_layers": 1},
        {"ignore_config_keys": ("novel",)},
        {"ignore_tensors": ("novel.*",)},
        {"model_config": None},
        {"sizes": tuple((SIZES | {"kv_width": 32}).items())},
        {"source": FolderSource("another")},
    ],
)
def test_changed_entry_makes_the_lock_outdated(build: Build, change: dict[str, object]) -> None:
    assert not is_locked(replace(build, **change))  # type: ignore[arg-type]


def test_changed_code_makes_the_lock_outdated(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_from, "fingerprint", lambda *modules: "0" * 16)
    assert not is_locked(build)
