"""Fingerprints of axzoo's own code: a hash over a module and every axzoo module it imports.

A fingerprint is a Snakemake param and part of the store keys, so a change to the compiler rebuilds the parts it
compiles, and other changes rebuild nothing. Library versions are left out: the numpy and onnx functions that the
compiler uses have exactly specified results.
"""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_IMPORT = re.compile(r"^[ \t]*(?:import (axzoo[\w.]*)|from (axzoo[\w.]*) import (\([^)]*\)|.*))", re.MULTILINE)
"""Matches imports as this package writes them. A test compares it with Python's parser, which is 20 times slower."""

_UNFOLLOWED = "# unfollowed"
"""Marks an import that cannot change a result, such as one used for a description in a manifest."""


@functools.cache
def fingerprint(*modules: str) -> str:
    """16 hex digits: a hash of the sources of `modules`, e.g. "axzoo.backends.host", and of all axzoo modules they
    import.

    Raises ValueError for a module that is not one of axzoo's: its fingerprint would never change.
    """
    for name in modules:
        if name.split(".")[0] != "axzoo" or _source(name) is None:
            raise ValueError(f"{name} is not a module of axzoo")
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
    """The axzoo modules that a module imports; `from a import b` counts as both a and a.b."""
    names = []
    for module, package, imported in _IMPORT.findall(path.read_text(encoding="utf-8")):
        if _UNFOLLOWED in imported:
            continue
        aliases = re.sub(r"#.*", "", imported).strip("()")
        inner = [alias.split()[0] for alias in aliases.split(",") if alias.strip()]
        names += [module] if module else [package, *(f"{package}.{name}" for name in inner)]
    return names
