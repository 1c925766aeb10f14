"""A server with a tiny model that never ends its answers, and the official OpenAI client."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest

sys.path.append(str(Path(__file__).parents[1] / "runtime"))
from chat_server import Server, chat_server
from tiny_bundle import EXACT, make_oracle, write_bundle

from axzoo.weights.recipe import Recipe

POSITIONS = 4096
RECIPE = replace(EXACT, prefill_len=32, kv_cache_len=POSITIONS - 1, last_kv_cache_len=(32, 64, 96))


@pytest.fixture(scope="session")
def tiny_served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with one token per byte, prefill groups for 128 tokens and a context of 4096."""
    return _write(RECIPE, tmp_path_factory.mktemp("served") / "tiny-w32a32")


@pytest.fixture(scope="session")
def tiny_served_s8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with s8 weights, for the fast modes, under the same name."""
    recipe = replace(RECIPE, weight_type="s8", post_weight_type="s8")
    return _write(recipe, tmp_path_factory.mktemp("served") / "tiny-w32a32")


def _write(recipe: Recipe, folder: Path) -> Path:
    folder.mkdir()
    write_bundle(make_oracle(POSITIONS), recipe, folder)
    return folder


@pytest.fixture(scope="module")
def server(tiny_served: Path) -> Iterator[Server]:
    with chat_server(tiny_served, "--queue", "2", "--mode", "exact") as running:
        yield running


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
