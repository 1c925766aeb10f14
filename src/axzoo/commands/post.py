"""Compile the post layer: final norm and lm_head."""

from __future__ import annotations

import argparse

from axzoo.commands._arguments import add_hidden_state_type, add_job_arguments, add_post_recipe, job_of, recipe_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job_arguments(parser)
    add_post_recipe(parser)
    add_hidden_state_type(parser)
    parser.add_argument("--backend", default="host", metavar="NAME", help="what compiles: a file of axzoo.backends")


def run(args: argparse.Namespace) -> None:
    from axzoo.build import build_post

    build_post(job_of(args), recipe_of(args), args.backend)
