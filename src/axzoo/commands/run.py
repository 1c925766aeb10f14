"""Talk to a built model."""

from __future__ import annotations

import argparse
import sys
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from axzoo.engine import Mode
    from axzoo.runtime.bundle import Bundle
    from axzoo.runtime.generate import Choose, Generation
    from axzoo.runtime.model import Model
    from axzoo.tokenizer.local import LocalTokenizer
    from axzoo.tokenizer.stream import StreamDecoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a built model's folder, results/<chip>/<name>")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what to say")
    parser.add_argument("--system", metavar="TEXT", help="the system message (default: the bundle's)")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without the chat template")
    parser.add_argument("--greedy", action="store_true", help="always take the most probable token")
    parser.add_argument("--seed", type=int, metavar="N", help="make sampling repeatable")
    parser.add_argument("--max-tokens", type=_positive, metavar="N", help="end after N tokens (default: context full)")
    parser.add_argument("--mode", choices=("exact", "fast"), default="exact", help="fp32 or integer kernels (exact)")


def run(args: argparse.Namespace) -> None:
    from axzoo.runtime.bundle import open_bundle
    from axzoo.runtime.generate import Generation

    bundle = open_bundle(args.bundle)
    choose = _chooser(bundle, args.greedy, args.seed)
    tokenizer, model = _load(bundle, args.mode)
    prompt = _encode(tokenizer, bundle, args)
    _speak(Generation(model, prompt, choose, bundle.eos_token_ids, args.max_tokens), tokenizer.stream())


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return number


def _chooser(bundle: Bundle, greedy: bool, seed: int | None) -> Choose:
    import numpy as np

    from axzoo.runtime.sampling import GREEDY, read_post_config, sample

    config = GREEDY if greedy else read_post_config(bundle.post_config)
    rng = np.random.default_rng(seed)
    return lambda logits, generated: sample(logits, generated, config, rng)


def _load(bundle: Bundle, mode: Mode) -> tuple[LocalTokenizer, Model]:
    """Loads everything behind a bar on the terminal: tokenizer, embedding, layers, post layer."""
    from axzoo.progress import open_console, stage_bars
    from axzoo.runtime.model import load_model
    from axzoo.tokenizer.local import load_tokenizer

    with stage_bars(open_console(sys.stderr)) as bars:
        bar = bars.add_task(f"loading {bundle.folder.resolve().name}", total=len(bundle.layers) + 3)
        tokenizer = load_tokenizer(bundle.tokenizer)
        bars.advance(bar)
        model = load_model(bundle.folder, mode, lambda: bars.advance(bar))
    return tokenizer, model


def _encode(tokenizer: LocalTokenizer, bundle: Bundle, args: argparse.Namespace) -> list[int]:
    if args.raw or not bundle.chat:
        return tokenizer.encode(args.prompt)
    system = bundle.system_prompt if args.system is None else args.system
    messages = [{"role": "system", "content": system}] if system else []
    return tokenizer.encode_chat([*messages, {"role": "user", "content": args.prompt}])


def _speak(generation: Generation, stream: StreamDecoder) -> None:
    """The answer goes to stdout as it comes, the board's lines to stderr."""
    tokens = iter(generation)
    first = list(islice(tokens, 1))
    print(f"ttft: {generation.ttft * 1e3:.2f} ms", file=sys.stderr, flush=True)
    for token in chain(first, tokens):
        print(stream.push(token), end="", flush=True)
    print(stream.flush(), flush=True)
    print(f"hit {generation.stop},avg {generation.tokens_per_second:.2f} token/s", file=sys.stderr)
