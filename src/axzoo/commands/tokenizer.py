"""Serve a tokenizer over HTTP, for host programs on boards."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from axzoo.commands._arguments import port

OUT_OF_MEMORY = "free some and run again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="localhost", help="address to listen on; 0.0.0.0 is all of them (localhost)")
    parser.add_argument("--port", type=port, default=12345, help="0 takes a free one (12345)")
    parser.add_argument(
        "--model",
        "--model_path",
        type=Path,
        required=True,
        metavar="DIR",
        help="a bundle, a checkpoint, or any folder with a tokenizer.json or tokenizer.model",
    )
    parser.add_argument("--system", metavar="TEXT", help="the system message (default: the bundle's)")


def run(args: argparse.Namespace) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    from dataclasses import replace

    from axzoo.serving.http import serve
    from axzoo.serving.tokenizer_app import CROWDED, make_app
    from axzoo.serving.tokenizer_service import make_service, open_served

    served = open_served(args.model)
    if args.system is not None:
        served = replace(served, system_prompt=args.system)

    def ready(port: int) -> None:
        print(f"tokenizer of {args.model} at http://{args.host}:{port}", flush=True)

    serve(make_app(make_service(served)), args.host, args.port, ready, CROWDED)


def _leave(*_: Any) -> None:
    sys.exit(0)
