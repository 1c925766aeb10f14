"""Extract the embedding table to .npy, .float32.bin and .bfloat16.bin."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from axzoo.commands._arguments import add_truncate, rounding_from
from axzoo.core.console import SUCCESS

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, metavar="IN", help="a checkpoint folder, or a GGUF file")
    parser.add_argument("output", type=Path, metavar="OUT", help="the folder to write the files to, such as a bundle")
    add_truncate(parser)


def run(args: argparse.Namespace) -> None:
    from axzoo.parts.embedding_files import extract_embedding

    for path in extract_embedding(args.input, args.output, rounding_from(args)):
        logger.log(SUCCESS, f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
