"""Record the inputs of every layer for calibration-aware rounding, for recipes with rounding gptq."""

from __future__ import annotations

import argparse
from pathlib import Path

from axzoo.commands._arguments import add_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lock", type=Path, required=True, metavar="DIR", help="folder of the model's lock files")
    add_source(parser)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="output folder, for index.json and one file per layer"
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="calibration text (default: self-generated text)")
    parser.add_argument("--tokens", type=int, default=8192, metavar="N", help="number of tokens, in sequences of 256")


def run(args: argparse.Namespace) -> None:
    from axzoo.calibrate.states import calibrate

    calibrate(args.lock, args.source, args.output, args.text, args.tokens)
