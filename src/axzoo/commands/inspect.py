"""Show what is in an .axmodel: shape groups, tensors, weight types and their errors, sizes, provenance."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from axzoo.errors import AxzooError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="an .axmodel, or any other ONNX file")
    parser.add_argument("--json", action="store_true", help="all of it as JSON")


def run(args: argparse.Namespace) -> None:
    from axzoo.inspection import inspect_file
    from axzoo.inspection.tables import tables
    from axzoo.progress import open_console

    found = inspect_file(args.file)
    try:
        if args.json:
            print(json.dumps(found.to_dict(), indent=2, allow_nan=False))
            return
        shown = tables(found)
    except (ValueError, RecursionError) as error:  # not finite, or nested beyond all reason
        raise AxzooError(f"{args.file} has damaged metadata ({error}): build it again") from None
    console = open_console(sys.stdout)
    for table in shown:
        console.print(table)
        console.print()
