"""Check level 2: generate an answer with the built files and compare it with the fp32 oracle."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from axzoo.commands._arguments import add_check_arguments
from axzoo.core.console import SUCCESS

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from axzoo.check.generation import GenerationCheck

RULE = "=" * 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_check_arguments(parser)
    parser.add_argument("--expect", metavar="TEXT", help="text that the answer must contain")
    parser.add_argument("--max_tokens", type=int, default=64, metavar="N", help="maximum tokens of the answer (64)")


def run(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from axzoo.bundle.manifest import read_manifest
    from axzoo.bundle.verification import require_engine
    from axzoo.check.generation import GenerationLog, compare_answer, generate_answer
    from axzoo.check.layers import prompt_ids
    from axzoo.check.oracles import bundle_oracle
    from axzoo.check.verdict import remove_reports, split_exceeded, write_report
    from axzoo.core.errors import AxzooError
    from axzoo.parts.checkpoint_oracle import checkpoint_oracle
    from axzoo.runtime.bundle_folder import open_bundle
    from axzoo.runtime.model import load_model
    from axzoo.tokenizer.token_ids import tokenizer_or_ids
    from axzoo.weights.formats import parse_limits, thresholds_of

    remove_reports(args.output)
    require_engine(args.bundle)
    bundle = open_bundle(args.bundle)
    recipe = read_manifest(args.bundle).recipe
    limits = parse_limits(args.thresholds)
    thresholds = thresholds_of(recipe, limits)
    tokenizer = tokenizer_or_ids(bundle.tokenizer, bundle.vocab_size)
    ids = prompt_ids(tokenizer, args.prompt, bundle.chat and not args.raw)
    oracle = checkpoint_oracle(args.lock, args.source, recipe.positions)
    loading = iter((bundle.embedding, *bundle.layers, bundle.post))
    model = load_model(args.bundle, on_step=lambda: print(f"load {next(loading).with_suffix('')}", flush=True))
    log = GenerationLog(len(bundle.layers))
    answer = generate_answer(model, tokenizer, ids, args.max_tokens, log)
    del model  # unmaps its files
    check = compare_answer(answer, tokenizer, oracle, bundle_oracle(args.bundle))
    failures, warnings = split_exceeded(check.exceeds(thresholds), limits)
    failures = [*check.faults(recipe.hidden_state_type, thresholds_of(recipe), args.expect), *failures]
    _print_end(check)
    for warning in warnings:
        logger.warning(f"the cost of quantization exceeds what is usual for its formats: {warning}")
    verdict = {"passed": not failures, "failures": failures, "warnings": warnings}
    report = {**verdict, "thresholds": asdict(thresholds), **asdict(check)}
    written = write_report(args.output, report)
    if failures:
        raise AxzooError(f"{args.bundle}: level 2 failed: {'; '.join(failures)}; the numbers are in {written}")
    logger.log(SUCCESS, f"level 2 passed: {len(check.steps)} tokens")


def _print_end(check: GenerationCheck) -> None:
    from axzoo.check.generation import visible

    print(RULE, visible(check.conversation), RULE, sep="\n")
    print("hit eos!" if check.hit_eos else "no eos")
    print(
        f"mean KL {check.mean_kl:.5f} (over {check.compared_tokens} tokens of the vocabulary), "
        f"top-1 agreement with fp32 {check.top1_agreement:.3f}",
        flush=True,
    )
