"""Run a Python program that was written for the board's engine."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

from axzoo.errors import AxzooError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", type=Path, help="what it imports as axengine is axzoo.engine")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the program's arguments")


def run(args: argparse.Namespace) -> None:
    from axzoo import engine

    if not args.program.is_file():
        raise AxzooError(f"{args.program} is missing: name the program's file")
    sys.modules["axengine"] = engine
    sys.argv = [str(args.program), *args.arguments]
    sys.path.insert(0, str(args.program.parent.resolve()))  # the program's own modules, as with `python PROGRAM`
    runpy.run_path(str(args.program), run_name="__main__")
