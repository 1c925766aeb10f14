"""Package a bundle for one of the boards' host programs: a folder to copy, or a Debian package."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from axzoo.core.console import SUCCESS

logger = logging.getLogger(__name__)

HOSTS = {
    "axllm": "a flat folder for `axllm run DIR` and `axllm serve DIR`",
    "stackflow": "a Debian package for M5Stack's llm unit",
    "python": "a folder for the Python hosts, which use pyaxengine",
    "prefill": "a folder with run scripts for main_prefill and the context hosts",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    hosts = ", ".join(f"{name}: {text}" for name, text in HOSTS.items())
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the built model; it is verified first")
    parser.add_argument("--for", dest="host", required=True, choices=HOSTS, help=hosts)
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="default: NAME-HOST, or the .deb, here")


def run(args: argparse.Namespace) -> None:
    from axzoo.bundle.boards.packages import package
    from axzoo.bundle.manifest import read_manifest

    output = package(args.bundle, args.host, args.output)
    if read_manifest(args.bundle).backend == "host":
        logger.warning("the compiled files are ONNX for tests on a desk and do not run on an NPU")
    logger.log(SUCCESS, f"packaged {args.bundle} for {args.host}: {output}")
