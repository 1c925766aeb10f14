"""Files shared by several fuzz tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "fetch"))
from tiny_gguf import make_tiny


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The GGUF file of a tiny model."""
    return make_tiny(tied=True).write(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()
