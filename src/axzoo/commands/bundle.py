"""Complete a bundle: tokenizer, configs, run script and manifest beside the compiled files."""

from __future__ import annotations

import argparse
from pathlib import Path

from axzoo.commands._arguments import add_recipe, add_source, recipe_of_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder with the compiled files")
    parser.add_argument("--model", required=True, metavar="NAME", help="the model's name in the matrix")
    parser.add_argument("--chip", required=True, help="the chip it is for")
    parser.add_argument("--backend", default="host", metavar="NAME", help="who compiled it (host)")
    parser.add_argument("--lock", type=Path, required=True, metavar="DIR", help="the model's lock files")
    add_source(parser)
    parser.add_argument("--receipts", type=Path, nargs="+", required=True, metavar="FILE", help="of every part")
    parser.add_argument("--raw", action="store_true", help="the model is not to be asked through a chat template")
    add_recipe(parser)


def run(args: argparse.Namespace) -> None:
    from axzoo.bundle.completion import BundlePlan, complete_bundle

    complete_bundle(
        BundlePlan(
            folder=args.bundle,
            name=args.bundle.name,
            model=args.model,
            chip=args.chip,
            backend=args.backend,
            recipe=recipe_of_json(args.recipe),
            chat=not args.raw,
            lock=args.lock,
            source=args.source,
            receipts=tuple(args.receipts),
        )
    )
