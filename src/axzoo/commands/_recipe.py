"""The recipe on the command line, under `llm_build`'s names and defaults."""

from __future__ import annotations

import argparse

from axzoo.recipe import (
    HIDDEN_STATE_TYPES,
    POST_WEIGHT_TYPES,
    ROUNDINGS,
    SCALE_RULES,
    WEIGHT_GROUP_SIZES,
    WEIGHT_TYPES,
    Recipe,
)


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
