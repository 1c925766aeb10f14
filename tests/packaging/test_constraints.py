"""envs/constraints.txt pins the requirements of pyproject.toml, and everything is installed with it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCK = "envs/constraints.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
REQUIREMENTS = [
    Requirement(line)
    for lines in (PROJECT["build-system"]["requires"], PROJECT["project"]["dependencies"], *EXTRAS.values())
    for line in lines
]


def pins() -> dict[str, Version]:
    """Pinned versions by normalized name."""
    found = {}
    for line in (ROOT / LOCK).read_text().splitlines():
        if not line.startswith("#"):
            name, version = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line).groups()  # type: ignore[union-attr]
            assert canonicalize_name(name) not in found, line
            found[canonicalize_name(name)] = Version(version)
    return found


PINS = pins()


@pytest.mark.parametrize("requirement", [r for r in REQUIREMENTS if r.name != "axzoo"], ids=str)
def test_pin_satisfies(requirement: Requirement) -> None:
    assert PINS[canonicalize_name(requirement.name)] in requirement.specifier


def _needed(requirement: Requirement, seen: set[tuple[str, str]]) -> Iterator[str]:
    """The installed distributions that a requirement needs, including itself."""
    name = canonicalize_name(requirement.name)
    try:
        lines = distribution(name).requires or []
    except PackageNotFoundError:  # part of an extra that is not installed here
        return
    yield name
    for extra in ("", *requirement.extras):
        if (name, extra) not in seen:
            seen.add((name, extra))
            for below in map(Requirement, lines):
                if below.marker is None or below.marker.evaluate({"extra": extra}):
                    yield from _needed(below, seen)


def test_transitive_requirements_are_pinned() -> None:
    seen: set[tuple[str, str]] = set()
    direct = [requirement for requirement in REQUIREMENTS if requirement.name != "axzoo"]
    needed = {name for requirement in direct for name in _needed(requirement, seen)}
    assert {"numpy", "filelock", "pydantic-core", "boto3", "kubernetes", "sympy"} <= needed
    assert needed <= PINS.keys()


def test_only_one_file_contains_pins() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("envs", "config", "scripts", ".ci")
        for path in (ROOT / folder).iterdir()
        if path.is_file() and re.search(r"^\s*(- )?[A-Za-z0-9._-]+==\d", path.read_text(errors="replace"), re.MULTILINE)
    }
    assert found == {LOCK}
    assert "==" not in " ".join(map(str, REQUIREMENTS))


def test_everything_is_installed_with_the_constraints() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("CONTRIBUTING.md")]
    for path in (ROOT / "Makefile", ROOT / "envs/Containerfile", *pages):
        for line in path.read_text().replace("\\\n", " ").splitlines():
            if re.search(r"pip install .*(axzoo|\.\[|\s\.(\s|$)|--editable)", line):
                assert re.search(rf"(-c|--constraint) (/opt/axzoo/)?({LOCK}|\$\(LOCK\))", line), f"{path}: {line}"
    makefile = (ROOT / "Makefile").read_text()
    assert f"LOCK := {LOCK}\n" in makefile
    stamps = re.findall(r"^\$\(VENV\)[\w/-]*/installed[\w-]*:(.*)$", makefile, re.MULTILINE)
    assert len(stamps) == 3
    assert all({"pyproject.toml", "$(LOCK)"} <= set(stamp.split()) for stamp in stamps)
    assert makefile.count("$(INSTALL)") == 3
    for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"):  # for the environment in which pip builds axzoo
        targets = "$(VENV)/installed $(VENV)/installed-test $(VENV)-bench/installed"
        assert f"{targets}: export {name} := $(LOCK)\n" in makefile
    (pip,) = (item["pip"] for item in yaml.safe_load((ROOT / "envs/environment.yaml").read_text())["dependencies"][2:])
    assert pip == ["-c constraints.txt", "-e .."]
