"""Bundles of the tiny model, each built once. Tests that modify a bundle work on a copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_bundle import EXACT, Oracle, make_oracle, write_bundle

from axzoo.weights.recipe import Recipe

BuildBundle = Callable[[Recipe], Path]


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    return make_oracle()


@pytest.fixture(scope="session")
def build_bundle(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> BuildBundle:
    built: dict[Recipe, Path] = {}

    def build(recipe: Recipe) -> Path:
        if recipe not in built:
            built[recipe] = tmp_path_factory.mktemp("bundle")
            write_bundle(oracle, recipe, built[recipe])
        return built[recipe]

    return build


@pytest.fixture(scope="session")
def bundle(build_bundle: BuildBundle) -> Path:
    return build_bundle(EXACT)
