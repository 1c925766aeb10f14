"""Report for every build of a matrix its bundle, check results and answer, or why it is left out."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("matrix", type=Path, metavar="MATRIX", help="a matrix file, such as config/zoo.yaml")


def run(args: argparse.Namespace) -> None:
    from axzoo.matrix.entries import load_zoo
    from axzoo.report.summary import summarize_build

    zoo = load_zoo(args.matrix)
    for build in (*zoo.builds(), *zoo.left_out()):
        print(f"{build.name} for {build.chip}")
        for label, text in summarize_build(build, zoo.chip_table):
            print(f"  {label:8} {text}")
