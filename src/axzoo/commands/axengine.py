"""Run a Python program that was written for the board's engine."""

from __future__ import annotations

import argparse
import runpy
import sys
import traceback
from pathlib import Path
from types import TracebackType

from axzoo.core.errors import AxzooError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", type=Path, help="what it imports as axengine is axzoo.runtime.engine")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the program's arguments")


def run(args: argparse.Namespace) -> None:
    from axzoo.runtime import engine

    if not args.program.is_file():
        raise AxzooError(f"{args.program} is missing: name the program's file")
    sys.modules["axengine"] = engine
    sys.argv = [str(args.program), *args.arguments]
    sys.path.insert(0, str(args.program.parent.resolve()))  # the program's own modules, as with `python PROGRAM`
    try:
        runpy.run_path(str(args.program), run_name="__main__")
    except AxzooError:
        raise
    except Exception as error:  # the program's own: told as Python tells it, from the program's first line on
        traceback.print_exception(error.with_traceback(_within(str(args.program), error.__traceback__)))
        sys.exit(1)


def _within(program: str, trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins in the program; none of it where the program could not be read."""
    while trace is not None and trace.tb_frame.f_code.co_filename != program:
        trace = trace.tb_next
    return trace
