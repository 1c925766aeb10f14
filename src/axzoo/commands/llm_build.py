"""Build a single model, like `pulsar2 llm_build`: from a checkpoint to a folder for the board."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo.commands._arguments import (
    add_compiler,
    add_hidden_state_type,
    add_layer_recipe,
    add_post_recipe,
    add_vision_recipe,
    recipe_from,
)
from axzoo.core.console import SUCCESS

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from axzoo.llm_build.input_model import InputModel
    from axzoo.llm_build.project import Project
    from axzoo.matrix.build import Build
    from axzoo.weights.recipe import Recipe

BUNDLE_FILES = ("manifest.json", "config.json", "post_config.json", "run.sh", "tokenizer.txt", "tokenizer/config.json")
"""Output files of the workflow's rule `bundle`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input_path", type=Path, required=True, help="Hugging Face checkpoint folder, or a GGUF file")
    parser.add_argument("--output_path", type=Path, default=Path(), help="output folder (.)")
    parser.add_argument("--parallel", type=_positive, default=1, metavar="N", help="number of jobs at once (1)")
    parser.add_argument("--model_config", type=Path, metavar="FILE", help="JSON file that overrides config.json")
    parser.add_argument("--model_type", metavar="NAME", help="overrides the model_type of config.json")
    add_layer_recipe(parser)
    parser.add_argument(
        "--calibration_text",
        type=Path,
        metavar="FILE",
        help="calibration text for --rounding gptq (default: self-generated text)",
    )
    parser.add_argument(
        "--calibration_tokens",
        type=int,
        metavar="N",
        help="number of calibration tokens for --rounding gptq, rounded down to sequences of 256 (8192)",
    )
    add_post_recipe(parser)
    add_hidden_state_type(parser)
    parser.add_argument(
        "-c",
        "--check_level",
        type=int,
        choices=(0, 1, 2),
        default=0,
        help="0: no check, 1: compare every layer with the fp32 checkpoint, 2: generate an answer to the prompt; "
        "results are also written to OUTPUT_PATH/checks (0)",
    )
    parser.add_argument("--chip", default="AX650", metavar="{AX620E,AX650}", help="chip; AX630C is AX620E (AX650)")
    parser.add_argument("--backend", default="host", metavar="NAME", help="backend: host, pulsar2, or a plugin (host)")
    add_compiler(parser)
    parser.add_argument(
        "--prompt", default="1+1=", help=r"prompt for the checks, without a chat template; \n is a newline (1+1=)"
    )
    add_vision_recipe(parser)
    parser.add_argument(
        "--ignore_config_keys", nargs="+", default=[], metavar="KEY", help="unknown config.json keys to accept"
    )
    parser.add_argument(
        "--ignore_tensors", nargs="+", default=[], metavar="NAME", help="unexpected tensors to accept; * is any text"
    )
    parser.add_argument(
        "--work_path",
        type=Path,
        default=Path(".axzoo"),
        metavar="DIR",
        help="folder of the build, kept for resuming and reuse; it may be removed (.axzoo)",
    )


def run(args: argparse.Namespace) -> None:
    from dataclasses import replace
    from functools import partial

    from axzoo.bundle.boards.host_files import host_notes
    from axzoo.bundle.boards.lengths import host_warnings
    from axzoo.bundle.manifest import MANIFEST
    from axzoo.core.errors import AxzooError
    from axzoo.core.files import read_json
    from axzoo.llm_build.input_model import read_model, read_override
    from axzoo.llm_build.output import check_output_path, place_bundle
    from axzoo.llm_build.project import choose_layers_per_job, open_project
    from axzoo.matrix.job_memory import refuse_stage
    from axzoo.matrix.lock_state import MADE_FROM
    from axzoo.matrix.preflight import refuse_misfit, refuse_prompt, refuse_recipe
    from axzoo.model.reading import format_config

    recipe = recipe_from(args)
    _check_calibration_options(args, recipe)
    check_output_path(args.output_path)
    override = read_override(args.model_config, args.model_type)
    model = read_model(args.input_path, override, args.model_config or Path("--model_type"), args.ignore_config_keys)
    _check_vision_options(args, model)
    if args.embedding_scale is None:
        recipe = replace(recipe, embedding_scale="graph" if model.spec.vision is None else "host")
    refuse_recipe(model.spec, recipe)
    with open_project(args.work_path) as project:
        entry = _entry(args, model, recipe) | _calibration(args, project)
        build = project.write_matrix(model.name, entry, override)
        refuse_misfit(build, project.chips)
        if args.check_level and not build.backend.runs_here:
            raise AxzooError(
                f"--check_level {args.check_level} runs the compiled files, but those of backend {args.backend} run "
                f"only on a board: omit --check_level"
            )
        if args.check_level:
            check = {1: "check_layers", 2: "check_generation"}[args.check_level]
            refuse_stage(build, check, "build with --check_level 0, or use a machine with more memory")
        if args.check_level and model.tokenizer:
            refuse_prompt(len(model.tokenizer.encode(build.prompt)), recipe)
        print(format_config(model.shown_name, model.spec), flush=True)
        for warning in host_warnings(recipe, model.spec.embedding_scale):
            logger.warning(f"--{warning}")
        logger.info(f"preparing llm model: reading and hashing {model.parameters / 1e6:.0f} million parameters")
        project.make([build.locks / MADE_FROM], jobs=args.parallel, layers_per_job=1, quiet=True)
        logger.log(SUCCESS, "prepare llm model done!")
        layers_per_job = choose_layers_per_job(project.folder, build, args.parallel)
        make = partial(project.make, jobs=args.parallel, layers_per_job=layers_per_job)
        make([*build.part_files, *(build.bundle / name for name in BUNDLE_FILES)])
        with project.keeping_digests(build):
            place_bundle(project.folder / build.bundle, args.output_path)
        logger.log(SUCCESS, "build llm model done!")
        for note in host_notes(read_json(args.output_path / MANIFEST).get("boards")):
            logger.warning(note)
        if args.check_level:
            _check(project, build, args, make)
        logger.log(SUCCESS, "check llm model done!" + ("" if args.check_level else " (level 0: nothing to check)"))


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, not {text!r}")
    return int(text)


def _check_calibration_options(args: argparse.Namespace, recipe: Recipe) -> None:
    """Raises AxzooError when calibration options are given but would have no effect."""
    from axzoo.core.errors import AxzooError
    from axzoo.weights.formats import CALIBRATED_ROUNDINGS, is_calibrated

    for name in ("calibration_text", "calibration_tokens"):
        if getattr(args, name) is not None and not is_calibrated(recipe):
            calibrated = " or ".join(sorted(CALIBRATED_ROUNDINGS))
            raise AxzooError(f"--{name} is for --rounding {calibrated}: add that, or omit --{name}")


def _check_vision_options(args: argparse.Namespace, model: InputModel) -> None:
    """Raises AxzooError when options of a vision model are given for a model without one, or the size is not valid."""
    from axzoo.core.errors import AxzooError
    from axzoo.parts.image_groups import vision_groups
    from axzoo.weights.recipe import Recipe

    if model.spec.vision is not None:
        vision_groups(model.spec.vision, ("tower",), Recipe(image_size=args.image_size or Recipe.image_size))
        return
    for name in ("image_size", "image_slices", "vpm_two_stage"):
        value = getattr(args, name)
        if value:
            option = f"--{name}" if value is True else f"--{name} {value}"
            raise AxzooError(
                f"{option}: {model.name} is a {model.spec.model_type} model without a vision tower: omit --{name}"
            )


def _entry(args: argparse.Namespace, model: InputModel, recipe: Recipe) -> dict[str, Any]:
    """The matrix entry that corresponds to the options."""
    return {
        "path": str(model.path),
        "model_type": model.spec.model_type,
        "num_hidden_layers": model.spec.num_hidden_layers,
        "sizes": model.sizes,
        "chips": [args.chip],
        "backend": [args.backend],
        **_compiler(args),
        **recipe.to_dict(),
        "prompt": args.prompt.replace("\\n", "\n"),
        "raw_prompt": True,
        "chat": model.has_chat_template,
        "ignore_config_keys": args.ignore_config_keys,
        "ignore_tensors": args.ignore_tensors,
    }


def _compiler(args: argparse.Namespace) -> dict[str, Any]:
    """The matrix key `compiler`. Its paths are absolute, because the build runs in the project's folder."""
    import json

    from axzoo.backends import load_backend

    if args.compiler is None and not load_backend(args.backend).takes_compiler:
        return {}
    return {"compiler": json.loads(load_backend(args.backend).settings(args.compiler))}


def _calibration(args: argparse.Namespace, project: Project) -> dict[str, Any]:
    """The keys of the matrix entry that come from the calibration options."""
    from axzoo.llm_build.project import CALIBRATION_TEXT

    entry: dict[str, Any] = {}
    if args.calibration_text is not None:
        entry["calibration_text"] = project.copy_in(args.calibration_text, CALIBRATION_TEXT)
    if args.calibration_tokens is not None:
        entry["calibration_tokens"] = args.calibration_tokens
    return entry


def _check(project: Project, build: Build, args: argparse.Namespace, make: Callable[..., None]) -> None:
    """Run the requested check, show its log and place its results in the output folder, also if it fails."""
    from functools import partial

    from axzoo.bundle.manifest import CHECKS
    from axzoo.check.verdict import failed_report
    from axzoo.core.errors import AxzooError
    from axzoo.core.files import read_json
    from axzoo.llm_build.output import (
        REPORTS,
        LogFollower,
        log_worst_layer,
        place_copy,
        place_text,
        remove_checks,
        with_output_paths,
    )

    name = REPORTS[args.check_level]
    passed, log = (project.folder / build.checks / f"{name}.{end}" for end in ("json", "log"))
    failed = failed_report(passed)
    remove_checks(args.output_path, (passed.name, log.name))
    failed.unlink(missing_ok=True)
    translate = partial(with_output_paths, bundle=build.bundle, output=args.output_path)
    follower = LogFollower(log, translate)
    try:
        make([build.checks / passed.name], quiet=True, on_poll=follower.show_new)
    except AxzooError:
        if not failed.exists():  # the check ended without a verdict
            raise
    follower.show_rest()
    found = failed if failed.exists() else passed
    place_copy(found, args.output_path / CHECKS / passed.name)
    place_text(translate(log.read_text()), args.output_path / CHECKS / log.name)
    report = read_json(found)
    if args.check_level == 1:
        log_worst_layer(report)
    if not report["passed"]:
        raise AxzooError(
            f"check level {args.check_level} failed for {'; '.join(report['failures'])}. The results are in "
            f"{args.output_path / CHECKS}; the files in {args.output_path} are the ones that failed"
        )
