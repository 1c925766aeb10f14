"""Unpack an archive of `axzoo pack` and verify every byte."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from axzoo.core.console import SUCCESS

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="an archive written by `axzoo pack`")
    parser.add_argument("folder", type=Path, metavar="DIR", help="new folder for the bundle")


def run(args: argparse.Namespace) -> None:
    from axzoo.bundle.archive import unpack

    manifest = unpack(args.file, args.folder)
    logger.log(SUCCESS, f"unpacked {manifest.name} into {args.folder}: {len(manifest.files)} files")
