"""Show the contents of an .axmodel: shape groups, tensors, weight types and errors, sizes, provenance."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from axzoo.core.errors import AxzooError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="an .axmodel, or any other ONNX file")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from axzoo.backends import load_backend
    from axzoo.backends.host.inspection import inspect_file
    from axzoo.bundle.description import read_provenance, tables
    from axzoo.core.console import open_console

    provenance = read_provenance(args.file)
    if not isinstance(provenance, str) and not load_backend(provenance.backend).runs_here:
        raise AxzooError(f"{args.file} was compiled by backend {provenance.backend}: inspect reads only ONNX files")
    found = inspect_file(args.file)
    try:
        if args.json:
            known = {"missing": provenance} if isinstance(provenance, str) else asdict(provenance)
            print(json.dumps(found.to_dict() | {"provenance": known}, indent=2, allow_nan=False))
            return
        shown = tables(found, provenance)
    except (ValueError, RecursionError) as error:  # non-finite numbers, or excessive nesting
        raise AxzooError(f"{args.file} has damaged metadata ({error}): build it again") from None
    console = open_console(sys.stdout)
    for table in shown:
        console.print(table)
        console.print()
