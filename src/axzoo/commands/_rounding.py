"""The argument of the verbs that round fp32 to bf16."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from axzoo.compile.embed import Rounding


def add_truncate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--truncate", action="store_true", help="drop the low 16 bits, as ax-llm-build does (default: to nearest even)"
    )


def rounding_of(args: argparse.Namespace) -> Rounding:
    from axzoo.compile.embed import nearest_even, truncated

    return truncated if args.truncate else nearest_even
