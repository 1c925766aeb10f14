"""Check what could not be tested without the vendor's compiler, and write a report to send."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from axzoo.commands._arguments import add_compiler

if TYPE_CHECKING:
    from axzoo.backends.pulsar2.trial import TrialCheck


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_compiler(parser)
    parser.add_argument("--chip", default="AX650", help="the chip to compile for (AX650)")
    parser.add_argument("-w", "--weight_type", choices=("s8", "s4"), default="s8", help="type of the weights (s8)")
    parser.add_argument(
        "--output", type=Path, default=Path("vendor-trial"), metavar="DIR", help="folder to write (vendor-trial)"
    )


def run(args: argparse.Namespace) -> None:
    import tempfile

    from axzoo.backends.pulsar2.settings import read_settings
    from axzoo.backends.pulsar2.trial import Trial, clean, run_trial
    from axzoo.core.errors import AxzooError
    from axzoo.weights.recipe import Recipe

    def tell(check: TrialCheck) -> None:
        shown = {True: "yes", False: "NO", None: "not checked"}[check.passed]
        print(f"{shown:12}{check.name} ({check.detail})", flush=True)

    settings = read_settings(args.compiler)
    args.output.mkdir(parents=True, exist_ok=True)
    clean(args.output)
    recipe = Recipe(weight_type=args.weight_type, prefill_len=64, kv_cache_len=128, last_kv_cache_len=(64,))
    with tempfile.TemporaryDirectory(dir=args.output, prefix=".trial.", ignore_cleanup_errors=True) as folder:
        report = run_trial(Trial(settings, args.chip, recipe, Path(folder)), args.output, tell)
    print(f"the report is {args.output / 'report.json'}")
    print(f"for the board: copy {args.output / 'board'} there, and run `python3 board_trial.py` in it")
    if failed := [check["name"] for check in report["checks"] if not check["passed"]]:
        raise AxzooError(f"{len(failed)} of {len(report['checks'])} checks did not pass: please send the report")
