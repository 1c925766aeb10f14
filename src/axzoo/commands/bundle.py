"""Complete a bundle: tokenizer, configs, run script and manifest beside the compiled files."""

from __future__ import annotations

import argparse
from pathlib import Path

from axzoo.commands._arguments import add_hidden_state_type, add_layer_recipe, add_post_recipe, add_source, recipe_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder with the compiled files")
    parser.add_argument("--chip", required=True, help="the chip it is for")
    parser.add_argument("--lock", type=Path, required=True, metavar="DIR", help="the model's lock files")
    add_source(parser)
    parser.add_argument("--receipts", type=Path, nargs="+", required=True, metavar="FILE", help="layers in order first")
    parser.add_argument("--raw", action="store_true", help="the model is not to be asked through a chat template")
    add_layer_recipe(parser)
    add_post_recipe(parser)
    add_hidden_state_type(parser)


def run(args: argparse.Namespace) -> None:
    from axzoo.bundle.completion import BundlePlan, complete_bundle

    complete_bundle(
        BundlePlan(
            folder=args.bundle,
            name=args.bundle.name,
            chip=args.chip,
            recipe=recipe_of(args),
            chat=not args.raw,
            lock=args.lock,
            source=args.source,
            receipts=tuple(args.receipts),
        )
    )
