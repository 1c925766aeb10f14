"""Compare every block of a vision model with the fp32 oracle on a picture."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from axzoo.commands._arguments import add_source
from axzoo.core.console import SUCCESS

if TYPE_CHECKING:
    from axzoo.runtime.bundle_folder import VisionFiles
    from axzoo.runtime.images import Pixels

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the built model")
    parser.add_argument("--lock", type=Path, required=True, metavar="DIR", help="folder of the model's lock files")
    add_source(parser)
    parser.add_argument("--image", type=Path, metavar="FILE", help="a picture, such as a photograph (a generated one)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON report")


def run(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from axzoo.bundle.manifest import read_manifest
    from axzoo.bundle.verification import require_engine
    from axzoo.check.verdict import remove_reports, write_report
    from axzoo.check.vision_blocks import LIMITS, check_vision
    from axzoo.core.errors import AxzooError
    from axzoo.parts.checkpoint_oracle import part_weights
    from axzoo.parts.kind import PartId
    from axzoo.runtime.bundle_folder import open_bundle

    remove_reports(args.output)
    require_engine(args.bundle)
    bundle, manifest = open_bundle(args.bundle), read_manifest(args.bundle)
    if bundle.vision is None or manifest.spec.vision is None:
        raise AxzooError(f"{args.bundle} has no vision model: there is nothing to check")
    limits = LIMITS[manifest.recipe.weight_type]
    weights = part_weights(args.lock, args.source, PartId("vision"))
    checks = []
    for check in check_vision(bundle.vision, manifest.spec.vision, weights, _pixels(args.image, bundle.vision)):
        checks.append(check)
        logger.info(f"vision {check.name} cos_sim is: {check.cosine}, relative L2: {check.relative_l2:.4f}")
    failed = [(check.name, limits.of(check.name)) for check in checks if not check.passes(limits.of(check.name))]
    failures = [
        f"vision {name}: it needs cosine >= {least.min_cosine:.4f} and relative L2 <= {least.max_relative_l2}"
        for name, least in failed
    ]
    report = {
        "passed": not failed,
        "failures": failures,
        "limits": asdict(limits),
        "blocks": [asdict(check) for check in checks],
    }
    written = write_report(args.output, report)
    if failed:
        raise AxzooError(f"{args.bundle}: the check of the vision model failed for {failures}; the numbers: {written}")
    logger.log(SUCCESS, f"vision check passed: {len(checks)} comparisons")


def _pixels(path: Path | None, files: VisionFiles) -> Pixels | None:
    """The picture in the size of the files; None if there is no `path`."""
    if path is None:
        return None
    from axzoo.runtime.images import read_picture, resized

    return resized(read_picture(path), files.height, files.width)
