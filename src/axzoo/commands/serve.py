"""Serve a built model over OpenAI's chat protocol, with a chat page."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo.commands._arguments import add_doors, add_mode, count
from axzoo.core.errors import AxzooError

if TYPE_CHECKING:
    from axzoo.runtime.bundle_folder import Bundle
    from axzoo.serving.pictures import PictureEncoder

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = "free some memory; --mode exact needs the least, because the weights stay in the files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of a built model, results/<chip>/<name>")
    add_doors(parser, 8000)
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="folder of the tokenizer (that of the bundle)")
    parser.add_argument(
        "--slices",
        action="store_true",
        help="read pictures in slices, for more detail; build with --image_slices",
    )
    add_mode(parser, "fast-prompts if it fits in memory, else fast, else exact")
    parser.add_argument(
        "--queue", type=count, default=16, metavar="N", help="requests that may wait; others get status 429 (16)"
    )


def run(args: argparse.Namespace) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit)
    from axzoo.bundle.verification import require_engine
    from axzoo.core.console import open_console, stage_bars
    from axzoo.runtime.bundle_folder import open_bundle
    from axzoo.runtime.memory import choose_mode
    from axzoo.runtime.model import load_files
    from axzoo.runtime.post_config import read_post_config
    from axzoo.runtime.prompting import TokenizerChoice, load_local, local_chat
    from axzoo.serving.answers import AnswerQueue
    from axzoo.serving.chat_app import TOO_MANY_CONNECTIONS, ServedModel, make_app
    from axzoo.serving.http import serve
    from axzoo.serving.origins import access_rules
    from axzoo.serving.prompts import PromptEncoder

    rules = access_rules(args.host, args.allow_host, args.allow_origin)
    bundle = open_bundle(args.bundle)
    require_engine(args.bundle)
    pictures = _pictures(bundle, args.slices)
    mode = choose_mode(bundle, args.mode, ["fast-prompts", "fast", "exact"])
    source = str(args.tokenizer or bundle.tokenizer)
    chat = bundle.uses_chat(args.tokenizer is not None)
    choice = TokenizerChoice(bundle.tokenizer_type, source, bundle.bos, bundle.eos, bundle.eos_token_ids)
    with stage_bars(open_console(sys.stderr)) as bars:
        bar = bars.add_task(f"loading {args.bundle.name}", total=len(bundle.layers) + 3)
        local = load_local(choice)
        tokenizer = local_chat(local, choice, chat)
        bars.advance(bar)
        model = load_files(bundle, mode, lambda: bars.advance(bar), bundle.mmap_embedding)
    name = args.bundle.resolve().name
    for missing in tokenizer.shortcomings(as_text=not chat):
        logger.warning(f"{name} has {missing}")
    created = int((args.bundle / "config.json").stat().st_mtime)
    sampling = read_post_config(Path(bundle.post_config))
    prompts = PromptEncoder(local, choice, chat)
    answers = AnswerQueue(model, tokenizer, prompts, args.queue, pictures)
    app = make_app(ServedModel(name, created, answers, prompts, sampling), rules)

    def on_ready(port: int) -> None:
        print(f"{name} at http://{args.host}:{port}", flush=True)

    serve(app, args.host, args.port, on_ready, TOO_MANY_CONNECTIONS)


def _pictures(bundle: Bundle, slices: bool) -> PictureEncoder | None:
    """The encoder of pictures; None if the model has no vision, or its tokenizer no tokens for pictures.

    Raises AxzooError when it cannot read slices, but must.
    """
    if bundle.vision is None or bundle.vision.tokens is None:
        if slices:
            raise AxzooError(f"{bundle.folder} cannot read pictures: omit --slices")
        return None
    from axzoo.runtime.image_encoder import VisionModel
    from axzoo.serving.pictures import PictureEncoder

    vision = VisionModel(bundle.vision)
    if slices:
        vision.require_slices()
    return PictureEncoder(vision, slices)


def _exit(*_: Any) -> None:
    sys.exit(0)
