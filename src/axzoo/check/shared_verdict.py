"""Bundles of one model with equal files, such as those for two chips, are checked once; the others get its verdict."""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from axzoo.bundle.manifest import MANIFEST, MANIFEST_LIMIT
from axzoo.core.console import SUCCESS
from axzoo.core.errors import AxzooError
from axzoo.core.files import atomic_path, read_json, write_json
from axzoo.core.fingerprint import fingerprint
from axzoo.core.locks import lock_file
from axzoo.core.stamps import digest_of

logger = logging.getLogger(__name__)

_LOCATIONS = ("bundle", "lock", "source", "output")
"""Arguments that say where files are. The manifest says what they are."""


def check_once(check: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Runs a check, unless the same check of a bundle with the same files passed: its report is copied.

    Reports of the workflow are in CHIP/NAME next to each other. Checks of equal bundles wait for each other. A report
    in another place is always made by a check.
    """
    if args.output.parent.name != args.bundle.name or not (args.bundle / MANIFEST).is_file():
        check(args)
        return
    subject = _subject(check, args)
    lock = args.output.absolute().parents[2] / f".{subject}"
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = lock_file(lock, "equal bundles may be checked twice")
    try:
        if (report := _passed(args.output, subject)) is None:
            check(args)
            write_json(args.output, read_json(args.output) | {"subject": subject})
            return
        with atomic_path(args.output) as temporary:
            shutil.copyfile(report, temporary)
        logger.log(SUCCESS, f"passed: {report} is the report of a bundle with the same files")
    finally:
        lock.unlink(missing_ok=True)
        held.close()


def _subject(check: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> str:
    """The digest of what is checked, and how: the manifest without its chip, the options, and the code."""
    manifest = {key: value for key, value in read_json(args.bundle / MANIFEST, MANIFEST_LIMIT).items() if key != "chip"}
    options = {name: str(value) for name, value in vars(args).items() if name not in _LOCATIONS}
    return digest_of([manifest, options, fingerprint(check.__module__)])


def _passed(output: Path, subject: str) -> Path | None:
    """The report of a passed check of the same subject for another chip."""
    for report in sorted(output.absolute().parents[2].glob(f"*/{output.parent.name}/{output.name}")):
        if report != output.absolute():
            try:
                if read_json(report).get("subject") == subject:
                    return report
            except (AxzooError, AttributeError, OSError):
                continue
    return None
