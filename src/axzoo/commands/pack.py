"""Pack a bundle into a reproducible tar archive."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from axzoo.core.console import SUCCESS

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the built model; it is verified first")
    parser.add_argument(
        "output", type=Path, nargs="?", metavar="OUT.tar", help="default: NAME.tar in the current folder"
    )


def run(args: argparse.Namespace) -> None:
    from axzoo.bundle.archive import pack

    output = args.output or Path(f"{args.bundle.resolve().name}.tar")
    pack(args.bundle, output)
    logger.log(SUCCESS, f"packed {args.bundle} into {output} ({output.stat().st_size / 1e6:.1f} MB)")
