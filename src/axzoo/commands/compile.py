"""Compile parts of a model, one after the other: layers, the post layer, the embedding."""

from __future__ import annotations

import argparse
from pathlib import Path

from axzoo.commands._arguments import add_recipe, add_source, recipe_of_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--lock, --output and --receipt go together: the first of each is one part, and so on."""

    def add(name: str, metavar: str, text: str, **more: str) -> None:
        parser.add_argument(name, type=Path, required=True, metavar=metavar, help=text, **more)

    add("--lock", "FILE", "the parts' lock files, which say what they are", nargs="+")
    add_source(parser)
    add("--store", "DIR", "the content-addressed store")
    add("--output", "FILE", "the files to build", nargs="+")
    add("--receipt", "FILE", "written last: what was built", nargs="+")
    parser.add_argument("--chip", required=True, help="the chip they are for")
    parser.add_argument("--backend", default="host", metavar="NAME", help="who compiles (host)")
    add_recipe(parser)
    parser.add_argument(
        "--calibration", type=Path, metavar="DIR", help="for a rounding that needs it: the folder of `axzoo calibrate`"
    )


def run(args: argparse.Namespace) -> None:
    from axzoo.backends.part_job import PartFile, PartJob, build_parts
    from axzoo.core.errors import AxzooError

    if len({len(args.lock), len(args.output), len(args.receipt)}) > 1:
        raise AxzooError("--lock, --output and --receipt go together: give as many files of each")
    files = tuple(map(PartFile, args.lock, args.output, args.receipt))
    recipe = recipe_of_json(args.recipe)
    build_parts(PartJob(files, args.source, args.store, recipe, args.backend, args.chip, args.calibration))
