"""Complete a bundle: add tokenizer, configs, run script and manifest to the compiled files."""

from __future__ import annotations

import argparse
from pathlib import Path

from axzoo.commands._arguments import add_recipe, add_source, parse_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder with the compiled files")
    parser.add_argument("--model", required=True, metavar="NAME", help="name of the model in the matrix")
    parser.add_argument("--chip", required=True, help="target chip")
    parser.add_argument("--backend", default="host", metavar="NAME", help="backend that compiled the files (host)")
    parser.add_argument("--lock", type=Path, required=True, metavar="DIR", help="folder of the model's lock files")
    add_source(parser)
    parser.add_argument("--receipts", type=Path, nargs="+", required=True, metavar="FILE", help="receipts of all parts")
    parser.add_argument("--receipt", type=Path, metavar="FILE", help="receipt of the bundle to write")
    parser.add_argument("--raw", action="store_true", help="the bundle is used without a chat template")
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
            recipe=parse_recipe(args.recipe),
            chat=not args.raw,
            lock=args.lock,
            source=args.source,
            receipts=tuple(args.receipts),
            receipt=args.receipt,
        )
    )
