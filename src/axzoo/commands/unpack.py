"""Unpack a bundle that was packed, checking every byte on the way."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="what `axzoo pack` wrote")
    parser.add_argument("folder", type=Path, metavar="DIR", help="the bundle's new folder")


def run(args: argparse.Namespace) -> None:
    from loguru import logger

    from axzoo.archive import unpack

    manifest = unpack(args.file, args.folder)
    logger.success(f"unpacked {manifest.name} into {args.folder}: {len(manifest.files)} files")
