"""Check whether the boards' hosts load a folder: a bundle, a published package, or what the vendor's tool built."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HOSTS = ("axllm", "main_prefill", "context", "python", "stackflow")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="FOLDER", help="folder with a model's .axmodel files")
    parser.add_argument("--host", choices=HOSTS, help="fail unless this host loads it; default: fail if none does")
    parser.add_argument("--free-mb", type=float, metavar="MB", help="the NPU's free memory in MB (10^6 bytes)")
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")


def run(args: argparse.Namespace) -> None:
    from axzoo.bundle.boards.board_check import board_check
    from axzoo.core.errors import AxzooError

    free_mib = None if args.free_mb is None else args.free_mb * 1e6 / (1 << 20)
    verdicts = board_check(args.bundle, free_mib)
    if args.json:
        print(json.dumps({host: verdict.to_dict() for host, verdict in verdicts.items()}, indent=2))
    else:
        for verdict in verdicts.values():
            print("\n".join(verdict.lines(args.bundle)))
    asked = [verdicts[args.host]] if args.host else list(verdicts.values())
    if not any(verdict.loads for verdict in asked):
        raise AxzooError(f"{args.host} does not load {args.bundle}" if args.host else f"no host loads {args.bundle}")
