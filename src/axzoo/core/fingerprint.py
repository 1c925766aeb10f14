"""What a result owes to our own code: the hash of a module and of every axzoo module it imports.

Passed as a Snakemake param and put into store keys, it rebuilds what a change of the compiler determines, and nothing
after a change of anything else. Library versions do not enter: what the compiler asks of numpy and onnx is exactly
specified.
"""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_IMPORT = re.compile(r"^[ \t]*(?:import (axzoo[\w.]*)|from (axzoo[\w.]*) import (\([^)]*\)|.*))", re.MULTILINE)
"""Imports as this package writes them. A test holds it against Python's own parser, which takes twenty times longer."""

_UNFOLLOWED = "# unfollowed"
"""Marks an import of what determines no result, such as a description for a manifest."""


@functools.cache
def fingerprint(*modules: str) -> str:
    """16 hex digits over the sources of `modules` ("axzoo.backends.host") and of all they import from
    axzoo."""
    digest = hashlib.sha256()
    for name, path in sorted(_closure(modules).items()):
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _closure(modules: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if path is not None and name not in found:
            found[name] = path
            waiting += _imports(path)
    return found


def _source(name: str) -> Path | None:
    base = _PACKAGE.joinpath(*name.split(".")[1:])
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@functools.cache
def _imports(path: Path) -> list[str]:
    """What a module imports from axzoo; of `from a import b`, both a and a.b."""
    names = []
    for module, package, imported in _IMPORT.findall(path.read_text(encoding="utf-8")):
        if _UNFOLLOWED in imported:
            continue
        said = re.sub(r"#.*", "", imported).strip("()")
        inner = [alias.split()[0] for alias in said.split(",") if alias.strip()]
        names += [module] if module else [package, *(f"{package}.{name}" for name in inner)]
    return names
