"""Arguments that the verbs building parts share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from axzoo.commands._source import add_source

if TYPE_CHECKING:
    from axzoo.build import Job


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Of a verb that builds one part."""
    _add_arguments(parser, {})


def add_jobs_arguments(parser: argparse.ArgumentParser) -> None:
    """Of a verb that builds several: the first of --lock with the first of --output and of --receipt, and so on."""
    _add_arguments(parser, {"nargs": "+"})


def _add_arguments(parser: argparse.ArgumentParser, count: dict[str, str]) -> None:
    def add(name: str, metavar: str, text: str, **more: str) -> None:
        parser.add_argument(name, type=Path, required=True, metavar=metavar, help=text, **more)

    add("--lock", "FILE", "the part's lock file", **count)
    add_source(parser)
    add("--store", "DIR", "the content-addressed store")
    add("--output", "FILE", "the file to build", **count)
    add("--receipt", "FILE", "written last: what was built", **count)


def job_of(args: argparse.Namespace) -> Job:
    from axzoo.build import Job

    return Job(lock=args.lock, source=args.source, store=args.store, output=args.output, receipt=args.receipt)


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """Raises AxzooError when the lists differ in length."""
    from axzoo.build import Job
    from axzoo.errors import AxzooError

    counts = {len(args.lock), len(args.output), len(args.receipt)}
    if len(counts) > 1:
        raise AxzooError("--lock, --output and --receipt go together: give as many files of each")
    parts = zip(args.lock, args.output, args.receipt, strict=True)
    return [Job(lock, args.source, args.store, output, receipt) for lock, output, receipt in parts]
