#!/usr/bin/env python
"""Print the figures of docs/architecture.md about the size of the source tree: modules, lines, places that name kinds.

python scripts/layout.py [CHECKOUT]
"""

from __future__ import annotations

import argparse
import re
import statistics
from pathlib import Path

KINDS = ("layer", "post", "embed")
_NAMED = re.compile(
    r"""["'](?:compile_|build_)?(layer|post|embed)s?["']|\b(LAYER|POST|EMBED)S?\b|\brule (layer|post|embed)s?\b"""
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, nargs="?", default=Path(__file__).parents[1])
    checkout = parser.parse_args().checkout
    package = checkout / "src/axzoo"
    lines = {path: len(path.read_text().splitlines()) for path in package.rglob("*.py")}
    top = list(package.glob("*.py"))
    places = sorted(str(path.relative_to(checkout)) for path in _sources(checkout) if _names_kinds(path))
    modules = [count for path, count in lines.items() if path.name != "__init__.py"]
    verbs = [path for path in lines if path.parent.name == "commands" and not path.name.startswith("_")]
    print(f"modules: {len(modules)}, of which verbs: {len(verbs)}; and {len(lines) - len(modules)} __init__.py")
    print(f"median lines of a module: {statistics.median(modules):.0f}")
    print(f"modules at the top of src/axzoo: {len(top)}")
    print(f"files outside parts/kinds that name two or more part kinds: {len(places)}")
    for place in places:
        print(f"    {place}")


def _sources(checkout: Path) -> list[Path]:
    python = [path for path in (checkout / "src").rglob("*.py") if path.parent.name != "kinds"]
    return [*python, checkout / "Snakefile", *(checkout / "workflow").rglob("*.smk")]


def _names_kinds(path: Path) -> bool:
    """Whether a file names at least two kinds in strings, constants or rules."""
    found = {name.lower() for groups in _NAMED.findall(path.read_text()) for name in groups if name}
    return len(found & set(KINDS)) >= 2


if __name__ == "__main__":
    main()
