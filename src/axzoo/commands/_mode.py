"""The option that says how a model is computed."""

from __future__ import annotations

import argparse


def add_mode(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--mode",
        choices=("exact", "fast", "fast-prompts"),
        default=default,
        help="fp32; integer kernels; or those, with the weights in memory a second time, to read prompts faster "
        f"({default})",
    )
