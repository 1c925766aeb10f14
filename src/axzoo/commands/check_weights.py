"""Compare the weights in files that run only on a board with the checkpoint's: each layer, and the post layer."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from axzoo.commands._arguments import add_source
from axzoo.core.console import SUCCESS

if TYPE_CHECKING:
    from axzoo.backends import LockedFile
    from axzoo.bundle.manifest import Manifest

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the built model")
    parser.add_argument("--lock", type=Path, required=True, metavar="DIR", help="folder of the model's lock files")
    add_source(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON report")


def run(args: argparse.Namespace) -> None:
    from axzoo.backends import load_backend
    from axzoo.bundle.manifest import read_manifest
    from axzoo.check.verdict import remove_reports, write_report
    from axzoo.core.errors import AxzooError
    from axzoo.fetch.sources import checkpoint_folder

    remove_reports(args.output)
    manifest = read_manifest(args.bundle)
    files = _locked_files(args.bundle, manifest, args.lock)
    verdicts = load_backend(manifest.backend).weight_verdicts(files, checkpoint_folder(args.source))
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


def _locked_files(bundle: Path, manifest: Manifest, lock: Path) -> list[LockedFile]:
    """The files that the backend compiled, in the order of the lock's parts, with their parts and weight types.

    Raises AxzooError when the lock is that of another model, or the bundle lacks a file.
    """
    from axzoo.backends import LockedFile
    from axzoo.core.errors import AxzooError
    from axzoo.parts.kinds import KINDS, kind_of
    from axzoo.parts.lock_index import read_index
    from axzoo.parts.part import read_parts

    spec = read_index(lock).spec
    if manifest.spec != spec:
        raise AxzooError(f"{bundle} describes another model than the lock {lock}: build the bundle again")
    names = {part: name for name, part in manifest.part_ids.items()}
    found = []
    for part in read_parts(lock, spec, [kind for kind in KINDS if kind.code is None]):
        kind = kind_of(part.id.kind)
        if not kind.is_built(manifest.recipe):
            continue
        if part.id not in names:
            raise AxzooError(f"{bundle}: its manifest has no file for {part.id.name}: build the bundle again")
        found.append(LockedFile(bundle / names[part.id], part, kind.weight_type(manifest.recipe)))
    return found
