"""Compare the weights in files that run only on a board with the checkpoint's: each layer, and the post layer."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from axzoo.commands._arguments import add_source
from axzoo.core.console import SUCCESS

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the built model")
    add_source(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON report")


def run(args: argparse.Namespace) -> None:
    from axzoo.backends import load_backend
    from axzoo.bundle.manifest import read_manifest
    from axzoo.check.verdict import remove_reports, write_report
    from axzoo.core.errors import AxzooError
    from axzoo.fetch.sources import checkpoint_folder

    remove_reports(args.output)
    backend = load_backend(read_manifest(args.bundle).backend)
    verdicts = backend.weight_verdicts(args.bundle, checkpoint_folder(args.source))
    failures = [f"{file}: {fault}" for file, verdict in verdicts.items() for fault in verdict["faults"]]
    unproven = {file: list(verdict["unknown"]) for file, verdict in verdicts.items() if verdict["unknown"]}
    proven = len(verdicts) - len(unproven.keys() | {file for file, verdict in verdicts.items() if verdict["faults"]})
    report = {"passed": not failures, "failures": failures, "proven": proven, "unproven": unproven, "files": verdicts}
    written = write_report(args.output, report)
    for file, reasons in unproven.items():
        logger.warning(f"{file} cannot be proven: {'; '.join(reasons)}")
    if failures:
        raise AxzooError(f"{args.bundle}: {'; '.join(failures[:3])}: compile these files again; all faults: {written}")
    logger.log(SUCCESS, f"weights of {proven} of {len(verdicts)} files are those of the checkpoint")
