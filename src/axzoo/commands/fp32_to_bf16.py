"""Convert a file of raw fp32 numbers to bf16."""

from __future__ import annotations

import argparse
from pathlib import Path

from axzoo.commands._arguments import add_truncate, rounding_from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, metavar="IN", help="little-endian fp32 numbers: X.float32.bin")
    parser.add_argument("output", type=Path, metavar="OUT", help="little-endian bf16 numbers: X.bfloat16.bin")
    add_truncate(parser)


def run(args: argparse.Namespace) -> None:
    from axzoo.parts.embedding_files import fp32_to_bf16

    fp32_to_bf16(args.input, args.output, rounding_from(args))
