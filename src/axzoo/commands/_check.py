"""Arguments that both check levels share."""

from __future__ import annotations

import argparse
from pathlib import Path

from axzoo.commands._source import add_source


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the built model's folder")
    parser.add_argument("--lock", type=Path, required=True, metavar="DIR", help="the model's lock files")
    add_source(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what to say to the model")
    parser.add_argument("--raw", action="store_true", help="take the prompt as it stands, without the chat template")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="numbers and verdict, JSON; NAME.failed.json where the check fails",
    )
