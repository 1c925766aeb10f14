"""Show the contents of an .axmodel: shape groups, tensors, weight types and errors, sizes, provenance."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from axzoo.core.errors import AxzooError

if TYPE_CHECKING:
    from axzoo.bundle.description import Provenance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="an .axmodel, or any other ONNX file")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from axzoo.backends import load_backend
    from axzoo.backends.host.inspection import inspect_file
    from axzoo.backends.pulsar2.vendor_file import is_vendor_file
    from axzoo.bundle.description import read_provenance, tables
    from axzoo.core.console import open_console

    provenance = read_provenance(args.file)
    if is_vendor_file(args.file):
        _show_vendor_file(args, provenance)
        return
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


def _show_vendor_file(args: argparse.Namespace, provenance: Provenance | str) -> None:
    from dataclasses import asdict

    from axzoo.backends.pulsar2.table_outline import outline_table
    from axzoo.backends.pulsar2.vendor_file import read_vendor_file
    from axzoo.bundle.description import vendor_tables
    from axzoo.core.console import open_console

    found = read_vendor_file(args.file)
    known = outline_table(found)
    if args.json:
        origin = {"missing": provenance} if isinstance(provenance, str) else asdict(provenance)
        print(json.dumps({**known.to_dict(), **found.to_dict(), "provenance": origin}, indent=2, allow_nan=False))
        return
    console = open_console(sys.stdout)
    for table in vendor_tables(found, known, provenance):
        console.print(table)
        console.print()
