"""Talk to a built model, with the flags of ax-llm's main_prefill or by its bundle's folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from axzoo.commands._arguments import add_mode, count, positive
from axzoo.runtime.setup import add_flags

if TYPE_CHECKING:
    from axzoo.runtime.generate import Choose
    from axzoo.runtime.model import Mode, Model
    from axzoo.runtime.prompting import Prompting
    from axzoo.runtime.setup import Setup


OUT_OF_MEMORY = "free some, or load each layer when it is run (--dynamic_load_axmodel_layer 1), which is slow"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", type=Path, nargs="?", metavar="BUNDLE", help="a built model's folder, results/<chip>/<name>"
    )
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="what to say first")
    parser.add_argument("--system", metavar="TEXT", help="the system message (default: the bundle's)")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without the chat template")
    parser.add_argument("--greedy", action="store_true", help="always take the most probable token")
    parser.add_argument("--seed", type=count, metavar="N", help="make sampling repeatable")
    parser.add_argument("--max-tokens", type=positive, metavar="N", help="end after N tokens (default: context full)")
    add_mode(parser, "exact")
    add_flags(parser)


def run(args: argparse.Namespace) -> None:
    from axzoo.runtime.chat import Chat, Terminal, tell_geometry
    from axzoo.runtime.setup import read_setup

    setup = read_setup(args)
    choose = _chooser(setup, args.greedy, args.seed)
    prompting, model = _load(setup, args.mode)
    tell_geometry(model.geometry)
    chat = Chat(model, prompting.encode, choose, prompting.eos, setup.system, args.max_tokens)
    terminal = Terminal(chat, prompting, setup.live)
    if args.prompt:
        terminal.answer(args.prompt)
    if setup.talk:
        terminal.talk()


def _chooser(setup: Setup, greedy: bool, seed: int | None) -> Choose:
    import numpy as np

    from axzoo.runtime.post_config import GREEDY, read_post_config
    from axzoo.runtime.sampling import sample

    config = GREEDY if greedy or setup.first_choice else read_post_config(setup.post_config)
    rng = np.random.default_rng(seed)
    return lambda logits, generated: sample(logits, generated, config, rng)


def _load(setup: Setup, mode: Mode) -> tuple[Prompting, Model]:
    """Loads everything behind a bar on the terminal: tokenizer, embedding, layers, post layer."""
    from axzoo.core.console import open_console, stage_bars
    from axzoo.core.errors import AxzooError
    from axzoo.runtime.model import load_files
    from axzoo.runtime.prompting import open_tokenizer

    with stage_bars(open_console(sys.stderr)) as bars:
        bar = bars.add_task(f"loading {setup.name}", total=len(setup.files.layers) + 3)
        prompting = open_tokenizer(setup.tokenizer, setup.chat)
        bars.advance(bar)
        model = load_files(setup.files, mode, lambda: bars.advance(bar), setup.mapped_embedding, setup.layers_on_demand)
    if setup.first_choice and not model.gives_topk:
        raise AxzooError(f"{setup.files.post} gives no first choice: leave out --use_topk, or build with --post_topk")
    return prompting, model
