"""Compile decoder layers, one after the other."""

from __future__ import annotations

import argparse
from pathlib import Path

from axzoo.commands._arguments import add_hidden_state_type, add_jobs_arguments, add_layer_recipe, jobs_of, recipe_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_jobs_arguments(parser)
    add_layer_recipe(parser)
    add_hidden_state_type(parser)
    parser.add_argument(
        "--calibration", type=Path, metavar="DIR", help="with --rounding gptq: the folder of `axzoo calibrate`"
    )
    parser.add_argument("--backend", default="host", metavar="NAME", help="what compiles: a file of axzoo.backends")


def run(args: argparse.Namespace) -> None:
    from axzoo.build import build_layer

    for job in jobs_of(args):
        build_layer(job, recipe_of(args), args.backend, args.calibration)
