"""Check level 1: every compiled file against the checkpoint, and every layer against the fp32 oracle."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from axzoo.commands._arguments import add_check_arguments
from axzoo.core.console import SUCCESS

if TYPE_CHECKING:
    from axzoo.check.layers import LayerCheck

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_check_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from axzoo.bundle.manifest import read_manifest
    from axzoo.bundle.verification import require_engine
    from axzoo.check.layers import prompt_ids
    from axzoo.check.level_1 import check_files
    from axzoo.check.verdict import remove_reports, split_exceeded, write_report
    from axzoo.core.errors import AxzooError
    from axzoo.runtime.bundle_folder import open_bundle
    from axzoo.tokenizer.token_ids import tokenizer_or_ids
    from axzoo.weights.formats import parse_limits, thresholds_of

    remove_reports(args.output)
    require_engine(args.bundle)
    limits = parse_limits(args.thresholds)
    bundle, manifest = open_bundle(args.bundle), read_manifest(args.bundle)
    thresholds = thresholds_of(manifest.recipe, limits)
    ids = prompt_ids(tokenizer_or_ids(bundle.tokenizer, bundle.vocab_size), args.prompt, bundle.chat and not args.raw)
    found = check_files(bundle, manifest, args.lock, args.source, ids, on_layer=_log)
    exceeded = {
        name: [check.layer for check in found.layers if name in check.exceeds(thresholds)]
        for name in asdict(thresholds)
    }
    costs = {
        name: f"{name} {getattr(thresholds, name)} is not met in layers {', '.join(map(str, layers))}"
        for name, layers in exceeded.items()
        if layers
    }
    failures, warnings = split_exceeded(costs, limits)
    failures = [*found.faults, *failures]
    for warning in warnings:
        logger.warning(f"the cost of quantization exceeds what is usual for its formats: {warning}")
    report = {
        "passed": not failures,
        "failures": failures,
        "warnings": warnings,
        "failed_layers": [check.layer for check in found.layers if check.faults],
        "thresholds": asdict(thresholds),
        "prompt_tokens": len(ids),
        "layers": [asdict(check) for check in found.layers],
        "files": [asdict(check) for check in found.files],
    }
    written = write_report(args.output, report)
    if failures:
        shown = "; ".join(failures[:3]) + (f"; and {len(failures) - 3} more" if len(failures) > 3 else "")
        raise AxzooError(f"{args.bundle}: level 1 failed: {shown}; the numbers are in {written}")
    logger.log(SUCCESS, f"level 1 passed: {len(found.layers)} layers, {len(found.files)} other files")


def _log(check: LayerCheck) -> None:
    for kind, cost in (("decode", check.decode), ("prefill", check.prefill)):
        if cost:
            logger.info(f"{kind} layer{check.layer}_gt layer{check.layer}_got cos_sim is: {cost.cosine}")
            massive = f", without massive tokens {list(cost.massive_tokens)}" if cost.massive_tokens else ""
            logger.info(
                f"{kind} layer{check.layer} delta_l2: {cost.delta_l2:.4f}, p95: {cost.delta_l2_p95:.4f}, "
                f"max_abs: {cost.max_abs:.4f}{massive}"
            )
    for fault in check.faults:
        logger.error(f"layer{check.layer} is not right: {fault}")
