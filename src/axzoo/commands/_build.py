"""Arguments that the verbs building one part share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from axzoo.build import Job


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lock", type=Path, required=True, metavar="FILE", help="the part's lock file")
    parser.add_argument("--source", type=Path, required=True, metavar="FILE", help="the checkpoint's source.json")
    parser.add_argument("--store", type=Path, required=True, metavar="DIR", help="the content-addressed store")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file to build")
    parser.add_argument("--receipt", type=Path, required=True, metavar="FILE", help="written last: what was built")


def job_of(args: argparse.Namespace) -> Job:
    from axzoo.build import Job

    return Job(lock=args.lock, source=args.source, store=args.store, output=args.output, receipt=args.receipt)
