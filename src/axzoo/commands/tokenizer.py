"""Serve a tokenizer over HTTP for host programs on boards."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from axzoo.commands._arguments import add_doors

OUT_OF_MEMORY = "free some memory and run again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_doors(parser, 12345)
    parser.add_argument(
        "--model",
        "--model_path",
        type=Path,
        required=True,
        metavar="DIR",
        help="a bundle, a checkpoint, or any folder with a tokenizer",
    )
    parser.add_argument("--system", metavar="TEXT", help="system message (default: from the bundle)")


def run(args: argparse.Namespace) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit)
    from dataclasses import replace

    from axzoo.runtime.setup import load_served_tokenizer
    from axzoo.serving.http import serve
    from axzoo.serving.origins import access_rules
    from axzoo.serving.tokenizer_app import TOO_MANY_CONNECTIONS, make_app
    from axzoo.serving.tokenizer_service import make_service

    rules = access_rules(args.host, args.allow_host, args.allow_origin)
    served = load_served_tokenizer(args.model)
    if args.system is not None:
        served = replace(served, system_prompt=args.system)

    def on_ready(port: int) -> None:
        print(f"tokenizer of {args.model} at http://{args.host}:{port}", flush=True)

    serve(make_app(make_service(served), rules), args.host, args.port, on_ready, TOO_MANY_CONNECTIONS)


def _exit(*_: Any) -> None:
    sys.exit(0)
