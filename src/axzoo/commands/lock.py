"""Hash the tensors of a checkpoint and check that they match its config.json."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from axzoo.commands._arguments import add_source
from axzoo.core.console import SUCCESS

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("--model_type", required=True, help="expected model_type of config.json")
    parser.add_argument(
        "--num_hidden_layers", type=int, required=True, metavar="N", help="expected num_hidden_layers of config.json"
    )
    parser.add_argument(
        "--ignore_config_keys", nargs="*", default=[], metavar="KEY", help="unknown config.json keys to accept"
    )
    parser.add_argument(
        "--ignore_tensors", nargs="*", default=[], metavar="NAME", help="unexpected tensors to accept; * is any text"
    )
    parser.add_argument("--model_config", type=Path, metavar="FILE", help="JSON whose keys override config.json's")
    parser.add_argument(
        "--sizes",
        metavar="JSON",
        help='expected sizes of the checkpoint: {"layer": ..., "post": ..., "kv_width": ...}',
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="tensors hashed at once (1)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the lock files")


def run(args: argparse.Namespace) -> None:
    from axzoo.core.files import read_json
    from axzoo.fetch.sources import checkpoint_folder
    from axzoo.matrix.lock_state import facts, write_made_from
    from axzoo.matrix.preflight import check_room, check_sizes, sizes_of_json
    from axzoo.model.reading import format_config, read_spec
    from axzoo.parts.lock import make_lock, write_lock
    from axzoo.tokenizer.local import find_tokenizer, require_rows

    model = (args.model_type, args.num_hidden_layers, args.ignore_config_keys)
    folder = checkpoint_folder(args.source)
    sizes = sizes_of_json(args.sizes)
    made_from = facts(args.source, *model, args.ignore_tensors, args.model_config, sizes)
    if tokenizer := find_tokenizer(folder):  # before every tensor is read
        require_rows(tokenizer, read_spec(folder, *model, args.model_config).vocab_size)
    lock = make_lock(folder, *model, args.model_config, args.threads, args.ignore_tensors)
    check_sizes(lock, sizes)
    check_room(lock, args.output)
    print(format_config(args.output.name, lock.spec))
    write_lock(lock, args.output, folder, read_json(args.source)["source"])
    write_made_from(args.output, made_from, [part.id for part in lock.parts])
    logger.log(SUCCESS, "prepare llm model done!")
