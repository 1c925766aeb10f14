"""The small llama checkpoint that most tests share. It is made once; tests that change a file work on a copy."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator

import pytest

from axzoo.weights.recipe import Recipe
from tiny_model import EXACT, Built, Checkpoint, build, make_checkpoint


def pytest_configure() -> None:
    """Child processes inherit an ignored SIGINT, as in the background jobs of a script. Tests that interrupt a command
    need the default."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Worker processes send reports as UTF-8, and captured text may contain paths that are not."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run whole builds first, so that no worker process starts a long test file when the others have finished."""
    items.sort(key=lambda item: item.get_closest_marker("workflow") is None)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def build_tiny(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe], Built]:
    """A function that builds the checkpoint with a recipe, once per recipe."""
    done: dict[Recipe, Built] = {}

    def build_once(recipe: Recipe) -> Built:
        if recipe not in done:
            done[recipe] = build(checkpoint, recipe, tmp_path_factory.mktemp("built"))
        return done[recipe]

    return build_once


@pytest.fixture(scope="session")
def exact(build_tiny: Callable[[Recipe], Built]) -> Built:
    return build_tiny(EXACT)


@pytest.fixture(scope="session")
def s8(build_tiny: Callable[[Recipe], Built]) -> Built:
    return build_tiny(Recipe(prefill_len=8, kv_cache_len=31, last_kv_cache_len=(8, 16)))
