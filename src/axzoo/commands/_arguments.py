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
    from axzoo.weights.bf16 import Bf16Rounding


def add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source", type=_receipt, required=True, metavar="FILE", help="the checkpoint's source.json, or its folder"
    )


def _receipt(said: str) -> Path:
    from axzoo.fetch.sources import RECEIPT

    path = Path(said)
    return path / RECEIPT if path.is_dir() else path


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """The recipe as one value, as a rule hands it on; `recipe_of_json` reads it."""
    parser.add_argument(
        "--recipe",
        default="{}",
        metavar="JSON",
        help="the recipe, as a JSON object or a file that holds one; what it leaves out has llm_build's defaults",
    )


def recipe_of_json(said: str) -> Recipe:
    """The recipe of `--recipe`. Raises AxzooError when it is not valid JSON, or not a recipe."""
    import json

    from axzoo.core.errors import AxzooError
    from axzoo.core.files import read_json

    if not said.lstrip().startswith("{"):
        return Recipe.from_dict(read_json(Path(said)))
    try:
        return Recipe.from_dict(json.loads(said))
    except (ValueError, RecursionError) as error:
        raise AxzooError(f"--recipe {said:.80} is not valid JSON: {error}") from None


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
        help="exact: weights dequantized to fp32; fast: integer kernels; fast-prompts: fast, with a second copy of the "
        f"weights that reads prompts faster ({default})",
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
