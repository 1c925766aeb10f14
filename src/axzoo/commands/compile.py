"""Compile parts of a model (layers, post layer, embedding), one after another."""

from __future__ import annotations

import argparse
from pathlib import Path

from axzoo.commands._arguments import add_compiler, add_recipe, add_source, parse_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The n-th --lock, --output and --receipt belong to the same part."""

    def add(name: str, metavar: str, text: str, **options: str) -> None:
        parser.add_argument(name, type=Path, required=True, metavar=metavar, help=text, **options)

    add("--lock", "FILE", "lock files of the parts", nargs="+")
    add_source(parser)
    add("--store", "DIR", "the content-addressed store")
    add("--output", "FILE", "files to write, one per part", nargs="+")
    add("--receipt", "FILE", "receipts to write, one per part", nargs="+")
    parser.add_argument("--chip", required=True, help="target chip")
    parser.add_argument("--backend", default="host", metavar="NAME", help="backend that compiles the parts (host)")
    add_compiler(parser)
    add_recipe(parser)
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="output folder of `axzoo calibrate`, for recipes with rounding gptq",
    )


def run(args: argparse.Namespace) -> None:
    from axzoo.backends import load_backend
    from axzoo.backends.part_job import PartFile, PartJob, build_parts
    from axzoo.core.errors import AxzooError

    if len({len(args.lock), len(args.output), len(args.receipt)}) > 1:
        raise AxzooError("--lock, --output and --receipt must have the same number of files")
    files = tuple(map(PartFile, args.lock, args.output, args.receipt))
    recipe = parse_recipe(args.recipe)
    settings = load_backend(args.backend).settings(args.compiler)
    build_parts(PartJob(files, args.source, args.store, recipe, args.backend, args.chip, args.calibration, settings))
