"""Show which jobs a build would run, and why. Nothing is fetched, locked or compiled."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="files of results/ (default: the whole matrix)")
    parser.add_argument("--configfile", type=Path, metavar="MATRIX", help="a matrix other than config/zoo.yaml")
    parser.add_argument(
        "--hash", action="store_true", help="hash local checkpoints that changed, and name the changed tensors"
    )


def run(args: argparse.Namespace) -> None:
    from axzoo.report.why import explain

    for line in explain(args.targets, args.configfile, hash_checkpoints=args.hash):
        print(line)
