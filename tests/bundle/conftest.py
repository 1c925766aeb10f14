"""A bundle that boards load, which several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from axzoo.bundle.completion import complete_bundle
from axzoo.weights.recipe import Recipe
from tiny_model import CHATML, build, make_checkpoint


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose chat template is one of axllm's."""
    root = tmp_path_factory.mktemp("chatml")
    checkpoint = make_checkpoint(root / "checkpoint", template=CHATML)
    built = build(checkpoint, Recipe(prefill_len=8, kv_cache_len=31, last_kv_cache_len=(8, 16)), root)
    complete_bundle(built.plan)
    return built.folder
