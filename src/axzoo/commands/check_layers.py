"""Check level 1: compare every layer with the fp32 oracle on the activations of a real prompt."""

from __future__ import annotations

import argparse
import logging

from axzoo.commands._arguments import add_check_arguments
from axzoo.core.console import SUCCESS

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_check_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from axzoo.bundle.manifest import read_manifest
    from axzoo.bundle.verification import require_engine
    from axzoo.check.layers import check_layers, prompt_ids
    from axzoo.check.verdict import remove_reports, write_report
    from axzoo.core.errors import AxzooError
    from axzoo.parts.checkpoint_oracle import checkpoint_oracle
    from axzoo.runtime.bundle_folder import open_bundle
    from axzoo.tokenizer.token_ids import tokenizer_or_ids
    from axzoo.weights.formats import thresholds_of

    remove_reports(args.output)
    require_engine(args.bundle)
    bundle = open_bundle(args.bundle)
    recipe = read_manifest(args.bundle).recipe
    thresholds = thresholds_of(recipe)
    ids = prompt_ids(tokenizer_or_ids(bundle.tokenizer, bundle.vocab_size), args.prompt, bundle.chat and not args.raw)
    checks = []
    for check in check_layers(bundle, checkpoint_oracle(args.lock, args.source, recipe.positions), ids):
        checks.append(check)
        for kind, numbers in (("decode", check.decode), ("prefill", check.prefill)):
            if numbers:
                logger.info(f"{kind} layer{check.layer}_gt layer{check.layer}_got cos_sim is: {numbers.cosine}")
                logger.info(
                    f"{kind} layer{check.layer} delta_l2: {numbers.delta_l2:.4f}, max_abs: {numbers.max_abs:.4f}"
                )
    failed = [check.layer for check in checks if not check.passes(thresholds)]
    failures = (
        f"layers {failed}: a layer needs cosine >= {thresholds.min_layer_cosine} "
        f"and a relative L2 of its delta <= {thresholds.max_delta_l2}"
    )
    report = {
        "passed": not failed,
        "failures": [failures] if failed else [],
        "failed_layers": failed,
        "thresholds": asdict(thresholds),
        "prompt_tokens": len(ids),
        "layers": [asdict(check) for check in checks],
    }
    written = write_report(args.output, report)
    if failed:
        raise AxzooError(f"{args.bundle}: level 1 failed for {failures}; the numbers are in {written}")
    logger.log(SUCCESS, f"level 1 passed: {len(checks)} layers")
