"""Run a Python program written for the board's `axengine` module."""

from __future__ import annotations

import argparse
import runpy
import sys
import traceback
from pathlib import Path
from types import TracebackType

from axzoo.core.errors import AxzooError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", type=Path, help="Python file; its `axengine` import becomes axzoo.runtime.engine")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the program")


def run(args: argparse.Namespace) -> None:
    from axzoo.runtime import engine

    if not args.program.is_file():
        raise AxzooError(f"{args.program} is missing: pass the path of a Python file")
    sys.modules["axengine"] = engine
    sys.argv = [str(args.program), *args.arguments]
    sys.path.insert(0, str(args.program.parent.resolve()))  # finds modules next to the program, like `python PROGRAM`
    try:
        runpy.run_path(str(args.program), run_name="__main__")
    except AxzooError:
        raise
    except Exception as error:  # raised by the program: print it as Python does, without axzoo's frames
        traceback.print_exception(error.with_traceback(_program_part(str(args.program), error.__traceback__)))
        sys.exit(1)


def _program_part(program: str, trace: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback from the program's first frame on, or None if it has no frame in the program."""
    while trace is not None and trace.tb_frame.f_code.co_filename != program:
        trace = trace.tb_next
    return trace
