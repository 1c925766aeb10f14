"""Chat with a built model, given as a bundle folder or by the flags of ax-llm's main_prefill."""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from axzoo.commands._arguments import add_mode, count, positive
from axzoo.runtime.setup import add_flags

if TYPE_CHECKING:
    from axzoo.runtime.generate import Sampler
    from axzoo.runtime.image_encoder import EncodedImage, VisionModel
    from axzoo.runtime.model import Mode, Model
    from axzoo.runtime.prompting import ChatTokenizer
    from axzoo.runtime.setup import Setup

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = "free some memory; --mode exact needs the least, because the weights stay in the files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", type=Path, nargs="?", metavar="BUNDLE", help="folder of a built model, results/<chip>/<name>"
    )
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="the first prompt")
    parser.add_argument("-i", "--image", type=Path, metavar="FILE", help="a picture that the first prompt is about")
    parser.add_argument(
        "--slices",
        action="store_true",
        help="read pictures in slices, for more detail; build with --image_slices",
    )
    parser.add_argument("--system", metavar="TEXT", help="system message (default: from the bundle)")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as text, without the chat template")
    parser.add_argument("--greedy", action="store_true", help="always select the most probable token")
    parser.add_argument("--seed", type=count, metavar="N", help="seed for repeatable sampling")
    parser.add_argument(
        "--max-tokens",
        type=positive,
        metavar="N",
        help="end an answer after N tokens (default: context full)",
    )
    add_mode(parser, "exact")
    add_flags(parser)


def run(args: argparse.Namespace) -> None:
    from axzoo.bundle.verification import require_engine
    from axzoo.core.errors import AxzooError
    from axzoo.runtime.chat import Chat, Terminal, print_geometry
    from axzoo.runtime.setup import read_setup

    setup = read_setup(args)
    if args.bundle is not None:
        require_engine(args.bundle)
    sampler = _make_sampler(setup, args.greedy, args.seed)
    tokenizer, model = _load(setup, args.mode)
    for missing in tokenizer.shortcomings(as_text=not setup.chat and not args.raw):
        logger.warning(f"{setup.name} has {missing}")
    print_geometry(model.geometry)
    chat = Chat(model, tokenizer.encode, sampler, tokenizer.eos, setup.system, args.max_tokens)
    terminal = Terminal(chat, tokenizer, setup.live_print, _image_encoder(setup, args.slices))
    if args.image is not None and not args.prompt:
        raise AxzooError(f"--image {args.image} needs a question: add --prompt TEXT")
    if args.prompt:
        terminal.answer(args.prompt, args.image)
    if setup.interactive:
        terminal.run()


def _image_encoder(setup: Setup, slices: bool) -> Callable[[Path], EncodedImage] | None:
    """Encodes picture files with the vision model, which is loaded for the first one. None without vision model."""
    files = setup.files.vision
    if files is None:
        return None

    @functools.cache
    def vision() -> VisionModel:
        from axzoo.runtime.image_encoder import VisionModel

        return VisionModel(files)

    def encode(path: Path) -> EncodedImage:
        from axzoo.runtime.images import read_picture

        picture = read_picture(path)
        return vision().encode_slices(picture) if slices else vision().encode(picture)

    return encode


def _make_sampler(setup: Setup, greedy: bool, seed: int | None) -> Sampler:
    import numpy as np

    from axzoo.runtime.post_config import GREEDY, read_post_config
    from axzoo.runtime.sampling import sample

    config = GREEDY if greedy or setup.use_topk else read_post_config(setup.post_config)
    rng = np.random.default_rng(seed)
    return lambda logits, generated: sample(logits, generated, config, rng)


def _load(setup: Setup, given: Mode | None) -> tuple[ChatTokenizer, Model]:
    """Load tokenizer, embedding, layers and post layer, and show a progress bar on a terminal."""
    from axzoo.core.console import open_console, stage_bars
    from axzoo.core.errors import AxzooError
    from axzoo.runtime.memory import choose_mode
    from axzoo.runtime.model import load_files
    from axzoo.runtime.prompting import open_tokenizer

    mode = choose_mode(setup.files, given, ["exact"])
    with stage_bars(open_console(sys.stderr)) as bars:
        bar = bars.add_task(f"loading {setup.name}", total=len(setup.files.layers) + 3)
        tokenizer = open_tokenizer(setup.tokenizer, setup.chat)
        bars.advance(bar)
        model = load_files(setup.files, mode, lambda: bars.advance(bar), setup.mmap_embedding, setup.layers_on_demand)
    if setup.use_topk and not model.has_topk:
        raise AxzooError(f"{setup.files.post} has no top-k outputs: omit --use_topk, or build with --post_topk")
    return tokenizer, model
