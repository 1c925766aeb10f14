"""Modes are chosen by the memory of the machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from axzoo.core.errors import AxzooError
from axzoo.runtime import memory as module
from axzoo.runtime.bundle_folder import Bundle, open_bundle
from axzoo.runtime.memory import BYTES_PER_STORED_BYTE, choose_mode
from axzoo.runtime.model import Mode
from axzoo.weights.recipe import Recipe
from tiny_model import EXACT

SERVED: list[Mode] = ["fast-prompts", "fast", "exact"]


@pytest.fixture
def files(build_bundle: Callable[[Recipe], Path]) -> Bundle:
    return open_bundle(build_bundle(EXACT))


@pytest.fixture
def needed(files: Bundle, monkeypatch: pytest.MonkeyPatch) -> Callable[[Mode, int], None]:
    """A machine with exactly the memory that a mode needs, plus some bytes."""
    weights = sum(path.stat().st_size for path in (*files.layers, files.post))

    def give(mode: Mode, more: int) -> None:
        monkeypatch.setattr(module, "physical_memory", lambda: int(BYTES_PER_STORED_BYTE[mode] * weights) + more)

    return give


def test_the_first_mode_that_fits_is_chosen(
    files: Bundle, needed: Callable[[Mode, int], None], caplog: pytest.LogCaptureFixture
) -> None:
    for mode, more, chosen in (
        ("fast-prompts", 0, "fast-prompts"),
        ("fast-prompts", -1, "fast"),
        ("fast", 0, "fast"),
        ("fast", -1, "exact"),
    ):
        needed(mode, more)  # type: ignore[arg-type]
        caplog.clear()
        assert choose_mode(files, None, SERVED) == chosen
        assert len(caplog.records) == SERVED.index(chosen)  # type: ignore[arg-type]
    assert "mode fast-prompts needs 0 MB to load the model, and this machine has 0 MB" in caplog.text


def test_a_given_mode_that_does_not_fit_is_refused(files: Bundle, needed: Callable[[Mode, int], None]) -> None:
    needed("fast", 0)
    assert choose_mode(files, "fast", SERVED) == "fast"
    needed("fast", -1)
    with pytest.raises(AxzooError, match=r"mode fast needs .* MB to load .*: use --mode exact, which leaves"):
        choose_mode(files, "fast", SERVED)
    assert choose_mode(files, "exact", SERVED) == "exact"
