"""The layout of src/axzoo: docs/architecture.md lists every module, and names are unique."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/axzoo"
MAP = ROOT / "docs/architecture.md"
COMMANDS, FAMILIES = "commands", "model/families"
"""Folders with one file per verb or architecture. The map lists only the folder."""

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def _named() -> set[str]:
    """The names in backticks in the map, without the prefix src/axzoo/ and the trailing slash of folders."""
    spans = re.findall(r"`([^`\n]+)`", MAP.read_text())
    return {span.strip().removeprefix("src/axzoo/").removeprefix("axzoo/").rstrip("/") for span in spans}


def _mentions(module: Path) -> set[str]:
    """The names of a module that the map may use: its path, its file name (which is unique), or a package's folder."""
    folder = module.parent.as_posix()
    if folder in (COMMANDS, FAMILIES) or module.name == "__init__.py":
        return {folder, module.as_posix()}
    return {module.name, module.as_posix()}


def _repeated(named: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    places = defaultdict(list)
    for name, place in named:
        places[name].append(place)
    return {name: where for name, where in places.items() if len(where) > 1}


def test_map_lists_every_module() -> None:
    named = _named() | {"."}  # the package itself
    assert [str(module) for module in MODULES if not _mentions(module) & named] == []


def test_map_lists_only_existing_modules() -> None:
    files = {name for name in _named() if re.fullmatch(r"[\w/]+\.py", name)}
    known = {module.as_posix() for module in MODULES} | {module.name for module in MODULES}
    assert sorted(name for name in files - known if not (ROOT / name).is_file()) == []


def test_top_level_modules() -> None:
    assert [str(module) for module in MODULES if len(module.parts) == 1] == ["__init__.py", "cli.py"]


def test_module_names_are_unique() -> None:
    """Except in commands/, whose files are named after verbs, and families/, named after model types."""
    unique = (m for m in MODULES if m.name != "__init__.py" and m.parent.as_posix() not in (COMMANDS, FAMILIES))
    assert _repeated((module.name, str(module)) for module in unique) == {}


def test_public_class_names_are_unique() -> None:
    classes = (
        (node.name, str(module))
        for module in MODULES
        for node in ast.parse((PACKAGE / module).read_bytes()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert _repeated(classes) == {}
