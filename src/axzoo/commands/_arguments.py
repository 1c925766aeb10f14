"""Arguments shared by several verbs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from axzoo.weights.recipe import (
    EMBEDDING_SCALES,
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


def _receipt(text: str) -> Path:
    from axzoo.fetch.sources import RECEIPT

    path = Path(text)
    return path / RECEIPT if path.is_dir() else path


def add_compiler(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compiler",
        metavar="TOOL",
        help="with --backend pulsar2: docker:IMAGE, podman:IMAGE, apptainer:FILE, native:FOLDER, 'command:PROGRAM "
        "ARGUMENTS', or a JSON object as in the matrix ($AXZOO_COMPILER)",
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add --recipe, the whole recipe as a single value, as the rules pass it. `parse_recipe` reads it."""
    parser.add_argument(
        "--recipe",
        default="{}",
        metavar="JSON",
        help="the recipe as a JSON object, or a file that contains it; omitted keys have the defaults of llm_build",
    )


def parse_recipe(text: str) -> Recipe:
    """Parse the value of `--recipe`. Raises AxzooError when it is not valid JSON or not a valid recipe."""
    import json

    from axzoo.core.errors import AxzooError
    from axzoo.core.files import read_json

    if not text.lstrip().startswith("{"):
        return Recipe.from_dict(read_json(Path(text)))
    try:
        return Recipe.from_dict(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise AxzooError(f"--recipe {text:.80} is not valid JSON: {error}") from None


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the built model")
    parser.add_argument("--lock", type=Path, required=True, metavar="DIR", help="folder of the model's lock files")
    add_source(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the prompt")
    parser.add_argument("--raw", action="store_true", help="do not apply the chat template to the prompt")
    parser.add_argument(
        "--thresholds",
        default="{}",
        metavar="JSON",
        help='limits that fail the check instead of giving a warning, like {"max_mean_kl": 0.02}',
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSON report with verdict and metrics; NAME.failed.json if the check fails",
    )


def add_mode(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --mode; None if it is not given. `default` describes what happens then."""
    parser.add_argument(
        "--mode",
        choices=("exact", "fast", "fast-prompts"),
        help="exact: fp32 arithmetic, weights stay in the files; fast: integer kernels; fast-prompts: fast, with a "
        f"second copy of the weights for faster prefill ({default})",
    )


def int_in_range(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """The type of an argument that must be a whole number in a range."""
    allowed = f"of {minimum} or more" if maximum is None else f"from {minimum} to {maximum}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < minimum or (maximum is not None and value > maximum):
            raise argparse.ArgumentTypeError(f"must be a whole number {allowed}, not {text!r}")
        return value

    return parse


positive = int_in_range(1)
count = int_in_range(0)
port = int_in_range(0, (1 << 16) - 1)


def add_doors(parser: argparse.ArgumentParser, default_port: int) -> None:
    """Add the arguments of a server: where it listens, and who may use it."""
    parser.add_argument("--host", default="localhost", help="address to listen on; 0.0.0.0 for all (localhost)")
    parser.add_argument(
        "--port", type=port, default=default_port, help=f"port to listen on; 0 for a free one ({default_port})"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name under which clients reach this server; may be repeated",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="origin of web pages that may use this server, such as https://example.org; may be repeated; * for all",
    )


def add_layer_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-w", "--weight_type", choices=WEIGHT_TYPES, default="s8", help="type of layer weights (s8)")
    parser.add_argument(
        "--prefill_len",
        type=int,
        metavar="N",
        help="tokens per prefill step; 0: none (128, or kv_cache_len if that is less)",
    )
    parser.add_argument("--kv_cache_len", type=int, default=127, metavar="N", help="tokens in the KV cache (127)")
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
        help="input features that share a scale (0: the whole row, as on the board)",
    )
    parser.add_argument(
        "--scale_rule", choices=SCALE_RULES, default="vendor", help="how the scales of s8 and s4 are chosen (vendor)"
    )
    parser.add_argument(
        "--rounding", choices=ROUNDINGS, default="nearest", help="how weights are rounded to s8 and s4 (nearest)"
    )


def add_post_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--post_weight_type", choices=POST_WEIGHT_TYPES, default="s8", help="type of the post layer's weights (s8)"
    )
    parser.add_argument(
        "--post_topk",
        type=int,
        default=0,
        metavar="K",
        help="the post layer returns indices and probabilities of the K most probable tokens (0: logits)",
    )
    parser.add_argument(
        "--ret_postnorm", action="store_true", help="the post layer also returns the normed hidden state"
    )


def add_hidden_state_type(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-t", "--hidden_state_type", choices=HIDDEN_STATE_TYPES, default="bf16", help="type of hidden states (bf16)"
    )


def add_vision_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image_size", type=int, metavar="N", help="vision models: pixels per side of images (280)")
    parser.add_argument(
        "--image_slices", action="store_true", help="vision models: also build for slices of large pictures"
    )
    parser.add_argument("--vpm_two_stage", action="store_true", help="vision models: tower and resampler in two files")
    parser.add_argument(
        "--embedding_scale",
        choices=EMBEDDING_SCALES,
        help="who scales the embedding of models that need it: layer 0 (graph) or the host program (host for vision "
        "models, else graph)",
    )


def recipe_from(args: argparse.Namespace) -> Recipe:
    """The recipe given by the arguments. Fields without an argument keep their defaults, except that the prefill groups
    end where the KV cache does, as the boards' hosts require."""
    options = {name: getattr(args, name, None) for name in Recipe.__dataclass_fields__}
    given = {name: value for name, value in options.items() if value is not None}
    if "prefill_len" not in given and "kv_cache_len" in given:
        given["prefill_len"] = max(1, min(Recipe.prefill_len, given["kv_cache_len"]))
    if "last_kv_cache_len" in given:
        given["last_kv_cache_len"] = tuple(given["last_kv_cache_len"])
    return Recipe(**given)


def add_truncate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--truncate",
        action="store_true",
        help="drop the low 16 bits, as ax-llm-build does (default: round to nearest even)",
    )


def rounding_from(args: argparse.Namespace) -> Bf16Rounding:
    from axzoo.weights.bf16 import nearest_even, truncated

    return truncated if args.truncate else nearest_even
