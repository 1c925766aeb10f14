from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from axzoo.core.errors import AxzooError
from axzoo.matrix.entries import Zoo, load_zoo

ROOT = Path(__file__).parents[2]


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Zoo]:
    """Loads a matrix from its text, with the project's chips."""

    def load_text(text: str) -> Zoo:
        path = tmp_path / "my.yaml"
        path.write_text(text)
        return load_zoo(path, chips=ROOT / "config/chips.yaml")

    return load_text


@pytest.fixture
def problems(load: Callable[[str], Zoo], tmp_path: Path) -> Callable[[str], list[str]]:
    """The problems of a matrix, as `LINE: message`."""

    def problems_of(text: str) -> list[str]:
        with pytest.raises(AxzooError) as error:
            load(text)
        prefix = f"{tmp_path}/my.yaml"
        lines = str(error.value).split("\n")
        assert all(line.startswith(prefix) for line in lines)
        return [line.removeprefix(prefix).removeprefix(":") for line in lines]

    return problems_of
