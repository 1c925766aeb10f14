"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from axzoo.weights.recipe import (
    HIDDEN_STATE_TYPES,
    POST_WEIGHT_TYPES,
    ROUNDINGS,
    SCALE_RULES,
    WEIGHT_GROUP_SIZES,
    WEIGHT_TYPES,
    Recipe,
)

if TYPE_CHECKING:
    from axzoo.build import Job
    from axzoo.weights.bf16 import Bf16Rounding


def add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source", type=_receipt, required=True, metavar="FILE", help="the checkpoint's source.json, or its folder"
    )


def _receipt(said: str) -> Path:
    from axzoo.fetch.sources import RECEIPT

    path = Path(said)
    return path / RECEIPT if path.is_dir() else path


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Of a verb that builds one part."""
    _add_arguments(parser, {})


def add_jobs_arguments(parser: argparse.ArgumentParser) -> None:
    """Of a verb that builds several: the first of --lock with the first of --output and of --receipt, and so on."""
    _add_arguments(parser, {"nargs": "+"})


def _add_arguments(parser: argparse.ArgumentParser, count: dict[str, str]) -> None:
    def add(name: str, metavar: str, text: str, **more: str) -> None:
        parser.add_argument(name, type=Path, required=True, metavar=metavar, help=text, **more)

    add("--lock", "FILE", "the part's lock file", **count)
    add_source(parser)
    add("--store", "DIR", "the content-addressed store")
    add("--output", "FILE", "the file to build", **count)
    add("--receipt", "FILE", "written last: what was built", **count)


def job_of(args: argparse.Namespace) -> Job:
    from axzoo.build import Job

    return Job(lock=args.lock, source=args.source, store=args.store, output=args.output, receipt=args.receipt)


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """Raises AxzooError when the lists differ in length."""
    from axzoo.build import Job
    from axzoo.core.errors import AxzooError

    counts = {len(args.lock), len(args.output), len(args.receipt)}
    if len(counts) > 1:
        raise AxzooError("--lock, --output and --receipt go together: give as many files of each")
    parts = zip(args.lock, args.output, args.receipt, strict=True)
    return [Job(lock, args.source, args.store, output, receipt) for lock, output, receipt in parts]


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the built model's folder")
    parser.add_argument("--lock", type=Path, required=True, metavar="DIR", help="the model's lock files")
    add_source(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what to say to the model")
    parser.add_argument("--raw", action="store_true", help="take the prompt as it stands, without the chat template")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="numbers and verdict, JSON; NAME.failed.json where the check fails",
    )


def add_mode(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--mode",
        choices=("exact", "fast", "fast-prompts"),
        default=default,
        help="fp32; integer kernels; or those, with the weights in memory a second time, to read prompts faster "
        f"({default})",
    )


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argument's type: a whole number within bounds."""
    wanted = f"{least} or more" if most is None else f"from {least} to {most}"

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be a whole number, {wanted}, not {text!r}")
        return value

    return number


positive = whole_number(1)
count = whole_number(0)
port = whole_number(0, (1 << 16) - 1)


def add_layer_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-w", "--weight_type", choices=WEIGHT_TYPES, default="s8", help="weight dtype (s8)")
    parser.add_argument("--prefill_len", type=int, default=0, metavar="N", help="token length of prefill (0: none)")
    parser.add_argument("--kv_cache_len", type=int, default=127, metavar="N", help="length of kv_cache (127)")
    parser.add_argument(
        "--last_kv_cache_len",
        type=int,
        nargs="+",
        action="extend",
        default=[],
        metavar="N",
        help="tokens cached before each prefill group after the first: 1, 2, ... times prefill_len; may be repeated",
    )
    parser.add_argument(
        "--weight_group_size",
        type=int,
        choices=WEIGHT_GROUP_SIZES,
        default=0,
        help="input features that share a scale (0: the whole row, as the board wants it)",
    )
    parser.add_argument("--scale_rule", choices=SCALE_RULES, default="vendor", help="how s8 and s4 get scales (vendor)")
    parser.add_argument("--rounding", choices=ROUNDINGS, default="nearest", help="how s8 and s4 get codes (nearest)")


def add_post_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--post_weight_type", choices=POST_WEIGHT_TYPES, default="s8", help="post weight type (s8)")
    parser.add_argument(
        "--post_topk", type=int, default=0, metavar="K", help="post model outputs K indices and prob (0)"
    )
    parser.add_argument("--ret_postnorm", action="store_true", help="post model also outputs the normed hidden state")


def add_hidden_state_type(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-t", "--hidden_state_type", choices=HIDDEN_STATE_TYPES, default="bf16", help="hidden_state dtype (bf16)"
    )


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe of the arguments that were added; others keep the recipe's defaults."""
    given = {name: getattr(args, name) for name in Recipe.__dataclass_fields__ if hasattr(args, name)}
    if "last_kv_cache_len" in given:
        given["last_kv_cache_len"] = tuple(given["last_kv_cache_len"])
    return Recipe(**given)


def add_truncate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--truncate", action="store_true", help="drop the low 16 bits, as ax-llm-build does (default: to nearest even)"
    )


def rounding_of(args: argparse.Namespace) -> Bf16Rounding:
    from axzoo.weights.bf16 import nearest_even, truncated

    return truncated if args.truncate else nearest_even
