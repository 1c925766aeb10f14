"""The argument that names a fetched checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source", type=_receipt, required=True, metavar="FILE", help="the checkpoint's source.json, or its folder"
    )


def _receipt(said: str) -> Path:
    from axzoo.fetch.receipt import RECEIPT

    path = Path(said)
    return path / RECEIPT if path.is_dir() else path
