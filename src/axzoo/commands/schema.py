"""Print the JSON Schema of matrix files, or check that a copy of it is current."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

from axzoo.core.errors import AxzooError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", type=Path, metavar="FILE", help="fail with a diff if FILE differs from the schema")


def run(args: argparse.Namespace) -> None:
    from axzoo.matrix.entries import schema_text

    if args.check is None:
        sys.stdout.write(schema_text())
    else:
        _check(args.check, schema_text())


def _check(file: Path, expected: str) -> None:
    """Raises AxzooError, after printing a unified diff, when the file differs from `expected`."""
    try:
        found = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AxzooError(f"cannot read {file}: {error}") from None
    if found != expected:
        lines = difflib.unified_diff(
            found.splitlines(keepends=True), expected.splitlines(keepends=True), str(file), "axzoo schema"
        )
        sys.stdout.writelines(lines)
        raise AxzooError(f"{file} is not the current schema: run `axzoo schema > {file}`")
