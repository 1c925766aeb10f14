"""Record what every layer is given while the model reads: what --rounding gptq rounds by."""

from __future__ import annotations

import argparse
from pathlib import Path

from axzoo.commands._arguments import add_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lock", type=Path, required=True, metavar="DIR", help="the model's lock files")
    add_source(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="one file per layer, and index.json")
    parser.add_argument("--text", type=Path, metavar="FILE", help="what to read (default: what the model itself says)")
    parser.add_argument("--tokens", type=int, default=8192, metavar="N", help="tokens to read, in sequences of 256")


def run(args: argparse.Namespace) -> None:
    from axzoo.calibrate.states import calibrate

    calibrate(args.lock, args.source, args.output, args.text, args.tokens)
