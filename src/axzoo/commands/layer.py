"""Compile one decoder layer."""

from __future__ import annotations

import argparse
from pathlib import Path

from axzoo.commands._build import add_job_arguments, job_of
from axzoo.commands._recipe import add_hidden_state_type, add_layer_recipe, recipe_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job_arguments(parser)
    add_layer_recipe(parser)
    add_hidden_state_type(parser)
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="with --rounding gptq: this layer's file of `axzoo calibrate`"
    )
    parser.add_argument("--backend", default="host", metavar="NAME", help="what compiles: a file of axzoo.backends")


def run(args: argparse.Namespace) -> None:
    from axzoo.build import build_layer

    build_layer(job_of(args), recipe_of(args), args.backend, args.calibration)
