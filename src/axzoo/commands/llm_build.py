"""Build one model, as `pulsar2 llm_build` does: a checkpoint in, a folder for the board out."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo.commands._recipe import add_hidden_state_type, add_layer_recipe, add_post_recipe, recipe_of

if TYPE_CHECKING:
    from axzoo.llm_build.model import Model
    from axzoo.llm_build.project import Project
    from axzoo.recipe import Recipe
    from axzoo.zoo.build import Build

BUNDLE_FILES = ("manifest.json", "config.json", "post_config.json", "run.sh", "tokenizer/tokenizer.json")
"""What the workflow's rule `bundle` promises."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input_path", type=Path, required=True, help="path of model: a checkpoint folder, or a GGUF")
    parser.add_argument("--output_path", type=Path, default=Path(), help="path of dumpped ax_model (.)")
    parser.add_argument("--parallel", type=_positive, default=1, metavar="N", help="build parallel: jobs at once (1)")
    parser.add_argument("--model_config", type=Path, metavar="FILE", help="config file, JSON: overrides config.json")
    parser.add_argument("--model_type", metavar="NAME", help="what the model is, whatever config.json says")
    add_layer_recipe(parser)
    parser.add_argument("--calibration_text", type=Path, metavar="FILE", help="a text for --rounding gptq to go by")
    parser.add_argument(
        "--calibration_tokens", type=int, metavar="N", help="how many tokens --rounding gptq goes by (8192)"
    )
    add_post_recipe(parser)
    add_hidden_state_type(parser)
    parser.add_argument(
        "-c",
        "--check_level",
        type=int,
        choices=(0, 1, 2),
        default=0,
        help="check level 0:run 1:layer_check 2: cal 1+1; results go to OUTPUT_PATH/checks, too (0)",
    )
    parser.add_argument("--chip", default="AX650", metavar="{AX620E,AX650}", help="chip; AX630C is AX620E (AX650)")
    parser.add_argument("--prompt", default="1+1=", help=r"prompt for the checks, as it stands; \n is a newline (1+1=)")
    parser.add_argument("--image_size", type=int, metavar="N", help="refused: vision towers are not built yet")
    parser.add_argument(
        "--ignore_config_keys", nargs="+", default=[], metavar="KEY", help="unknown config.json keys to accept"
    )
    parser.add_argument(
        "--work_path",
        type=Path,
        default=Path(".axzoo"),
        metavar="DIR",
        help="where builds are kept, to go on and to be reused; may be removed (.axzoo)",
    )


def run(args: argparse.Namespace) -> None:
    from functools import partial

    from loguru import logger

    from axzoo.llm_build.model import read_model, read_override
    from axzoo.llm_build.output import place_bundle, refuse_checkpoint
    from axzoo.llm_build.project import open_project
    from axzoo.progress import format_config
    from axzoo.zoo.made_from import MADE_FROM

    recipe = recipe_of(args)
    _refuse_idle_options(args)
    override = read_override(args.model_config, args.model_type)
    model = read_model(args.input_path, override, args.model_config or Path("--model_type"), args.ignore_config_keys)
    _refuse_image_size(args.image_size, model)
    refuse_checkpoint(args.output_path)
    print(format_config(model.name, model.spec), flush=True)
    with open_project(args.work_path) as project:
        entry = _entry(args, model, recipe) | _calibration(args, project)
        build = project.describe(model.name, entry, override)
        make = partial(project.make, jobs=args.parallel, layers_per_job=model.layers_per_job)
        make([build.locks / MADE_FROM], quiet=True)
        logger.success("prepare llm model done!")
        make([*build.compiled_files, *(build.bundle / name for name in BUNDLE_FILES)])
        place_bundle(project.folder / build.bundle, args.output_path)
        logger.success("build llm model done!")
        if args.check_level:
            _check(project, build, args, make)
        logger.success("check llm model done!" + ("" if args.check_level else " (level 0: nothing to check)"))


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return number


def _refuse_idle_options(args: argparse.Namespace) -> None:
    """Raises AxzooError for what would be accepted and ignored."""
    from axzoo.errors import AxzooError

    for name in ("calibration_text", "calibration_tokens"):
        if getattr(args, name) is not None and args.rounding != "gptq":
            raise AxzooError(f"--{name} is for --rounding gptq: add that, or leave --{name} away")


def _refuse_image_size(image_size: int | None, model: Model) -> None:
    from axzoo.errors import AxzooError

    if image_size is None:
        return
    if model.has_vision_tower:
        raise AxzooError(
            f"--image_size {image_size}: axzoo builds the language part of {model.spec.model_type} only, its vision "
            f"tower not yet: leave --image_size away to build that part"
        )
    raise AxzooError(
        f"--image_size {image_size}: {model.name} is a {model.spec.model_type} model without a vision tower, "
        f"it takes no images: leave --image_size away"
    )


def _entry(args: argparse.Namespace, model: Model, recipe: Recipe) -> dict[str, Any]:
    """The matrix entry that says what the options say."""
    from dataclasses import asdict

    return {
        "path": str(model.path),
        "model_type": model.spec.model_type,
        "num_hidden_layers": model.spec.num_hidden_layers,
        "chips": [args.chip],
        **asdict(recipe),
        "last_kv_cache_len": list(recipe.last_kv_cache_len),
        "prompt": args.prompt.replace("\\n", "\n"),
        "raw_prompt": True,
        "chat": model.has_chat_form,
        "ignore_config_keys": args.ignore_config_keys,
    }


def _calibration(args: argparse.Namespace, project: Project) -> dict[str, Any]:
    """What gptq is to go by, as far as it was said."""
    from axzoo.llm_build.project import CALIBRATION_TEXT

    entry: dict[str, Any] = {}
    if args.calibration_text is not None:
        entry["calibration_text"] = project.take_in(args.calibration_text, CALIBRATION_TEXT)
    if args.calibration_tokens is not None:
        entry["calibration_tokens"] = args.calibration_tokens
    return entry


def _check(project: Project, build: Build, args: argparse.Namespace, make: Callable[..., None]) -> None:
    """Runs the level asked for, shows what it found and puts its files beside the bundle."""
    from axzoo.llm_build.levels import REPORTS, show_generation, show_layers
    from axzoo.llm_build.output import CHECKS, place_copy, remove_checks

    name = REPORTS[args.check_level]
    report, log = build.checks / f"{name}.json", build.checks / f"{name}.log"
    remove_checks(args.output_path, (report.name, log.name))
    make([report], quiet=True)
    for path in (report, log):
        place_copy(project.folder / path, args.output_path / CHECKS / path.name)
    if args.check_level == 1:
        show_layers(project.folder / report)
    else:
        show_generation(project.folder / log, build, args.output_path)
