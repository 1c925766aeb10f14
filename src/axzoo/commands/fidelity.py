"""Measure how close a built model is to the fp32 oracle, on a text and on greedy answers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from axzoo.commands._arguments import add_source

if TYPE_CHECKING:
    from axzoo.check.fidelity import GreedyAgreement
    from axzoo.model.oracle import Oracle
    from axzoo.runtime.model import Model
    from axzoo.tokenizer.local import LocalTokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the built model")
    parser.add_argument("--lock", type=Path, required=True, metavar="DIR", help="folder of the model's lock files")
    add_source(parser)
    parser.add_argument("--text", type=Path, metavar="FILE", help="text over which to compare predictions")
    parser.add_argument("--tokens", type=int, default=1000, metavar="N", help="tokens of the text to use (1000)")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="prompts to answer greedily, one per line")
    parser.add_argument("--max_tokens", type=int, default=32, metavar="N", help="maximum tokens per answer (32)")


def run(args: argparse.Namespace) -> None:
    from axzoo.bundle.manifest import read_manifest
    from axzoo.bundle.verification import require_engine
    from axzoo.check.oracles import bundle_oracle, in_memory
    from axzoo.parts.checkpoint_oracle import checkpoint_oracle
    from axzoo.runtime.model import load_model
    from axzoo.tokenizer.token_ids import tokenizer_or_ids

    require_engine(args.bundle)
    model, manifest = load_model(args.bundle), read_manifest(args.bundle)
    tokenizer = tokenizer_or_ids(args.bundle / "tokenizer", manifest.spec.vocab_size)
    longest = manifest.recipe.positions
    oracles = {
        "fp32 checkpoint": in_memory(checkpoint_oracle(args.lock, args.source, longest)),
        "dequantized bundle weights": in_memory(bundle_oracle(args.bundle)),
    }
    for name, oracle in oracles.items():
        if args.text is not None:
            _print_text(name, model, oracle, tokenizer.encode(args.text.read_text())[: args.tokens])
        if args.prompts is not None:
            _print_prompts(name, model, oracle, tokenizer, args.prompts.read_text().splitlines(), args.max_tokens)


def _print_text(name: str, model: Model, oracle: Oracle, ids: list[int]) -> None:
    from axzoo.check.fidelity import text_fidelity

    result = text_fidelity(model, oracle.logits(ids).numpy(), ids)
    print(
        f"text against {name}: {result.tokens} tokens, top-1 agreement {result.top1_agreement:.4f}, mean KL "
        f"{result.mean_kl:.5f} nats, perplexity {result.built_perplexity:.3f} (oracle {result.oracle_perplexity:.3f})"
    )


def _print_prompts(
    name: str, model: Model, oracle: Oracle, tokenizer: LocalTokenizer, prompts: list[str], tokens: int
) -> None:
    from axzoo.check.fidelity import greedy_agreement
    from axzoo.check.layers import prompt_ids

    print(f"greedy answers against {name}: tokens before the first difference, out of at most {tokens}")
    for prompt in prompts:
        ids = prompt_ids(tokenizer, prompt, chat=tokenizer.chat is not None)
        result = greedy_agreement(model, oracle, ids, tokens, tokenizer.eos_token_ids)
        print(f"  {result.agreed:3} of {result.tokens:3}  {prompt}{_difference(result)}")


def _difference(result: GreedyAgreement) -> str:
    if result.agreed == result.tokens:
        return ""
    kind = "a tie" if result.is_tie else "not a tie"
    return f" ({kind}: a margin of {result.margin:.3f} logits, where the bf16 step is {result.bf16_step})"
