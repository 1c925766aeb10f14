"""Forecast a model's speed, memory, flash and download on a board, from its config.json alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import axzoo
from axzoo.commands._arguments import positive
from axzoo.weights.recipe import WEIGHT_TYPES

if TYPE_CHECKING:
    from axzoo.forecast.estimate import Forecast, Interval
    from axzoo.matrix.build import Build
    from axzoo.matrix.chips import ChipTable
    from axzoo.matrix.forecasts import Subject

_MATRIX = Path("config/zoo.yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="MODEL",
        help="a config.json, a checkpoint folder, a GGUF file, a matrix file, a model of the matrix, or ORG/NAME on "
        "the hub, of which only config.json is fetched",
    )
    parser.add_argument("--chip", nargs="+", default=[], metavar="CHIP", help="chips (all)")
    parser.add_argument(
        "--host",
        choices=("onchip", "axcl"),
        default="onchip",
        help="where the host program runs: on the board, or on a computer with the chip on a PCIe card (onchip)",
    )
    parser.add_argument(
        "-w",
        "--weights",
        nargs="+",
        choices=WEIGHT_TYPES,
        default=[],
        help="weight types of the layers (s8 and s4, or those of the matrix)",
    )
    parser.add_argument("--context", type=positive, metavar="N", help="tokens in the KV cache (1023, or the matrix's)")
    parser.add_argument("--prompt", type=positive, default=128, metavar="N", help="tokens of the prompt (128)")
    parser.add_argument(
        "--matrix", type=Path, default=_MATRIX, metavar="FILE", help=f"matrix of model names ({_MATRIX})"
    )
    parser.add_argument("--revision", default="main", help="revision of hub repositories (main)")
    parser.add_argument(
        "--ignore_config_keys", nargs="+", default=[], metavar="KEY", help="unknown config.json keys to accept"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: a list with one object per build")


def run(args: argparse.Namespace) -> None:
    import json

    from axzoo.core.errors import AxzooError

    rows: list[tuple[Subject, Forecast]] = []
    problems = []
    chips = _chips()
    names = _chip_names(args.chip, chips)
    for target in args.targets:
        try:
            found = list(_forecasts(target, args, chips, names))
        except AxzooError as error:
            problems.append(str(error))
            continue
        rows += found
        if not args.json and found:
            print("\n".join(_table(found)), end="\n\n")
    if args.json:
        print(json.dumps([_to_dict(subject, forecast) for subject, forecast in rows], indent=2))
    if problems:
        raise AxzooError("\n".join(problems))


def _chips() -> ChipTable:
    """The project's chips, or those of the package outside a project."""
    from axzoo.matrix.chips import load_chips

    own = Path("config/chips.yaml")
    return load_chips(own if own.exists() else Path(axzoo.__file__).parent / "project" / own)


def _chip_names(given: Sequence[str], chips: ChipTable) -> list[str]:
    from axzoo.core.errors import AxzooError

    known = chips.canonical_names()
    for name in given:
        if name not in known:
            raise AxzooError(f"--chip {name!r:.80} is not known: use {', '.join(known)}")
    return list(dict.fromkeys(known[name] for name in given)) or list(chips.chips)


def _forecasts(
    target: str, args: argparse.Namespace, chips: ChipTable, names: Sequence[str]
) -> Iterator[tuple[Subject, Forecast]]:
    """The forecasts of a target: of every build of a matrix, or for all chips and weight types."""
    from axzoo.forecast.speed import PCIE_CHIPS
    from axzoo.matrix.forecasts import find_subject, usual_recipe

    if args.host == "axcl" and not args.chip:
        names = [name for name in names if name in PCIE_CHIPS]
    if target.endswith((".yaml", ".yml")):
        yield from _of_matrix(Path(target), args, names)
        return
    builds = [] if Path(target).exists() or not args.matrix.exists() else _builds(args.matrix)
    subject = find_subject(target, builds, args.revision, args.ignore_config_keys)
    for chip in names:
        for weight_type in args.weights or ("s8", "s4"):
            recipe = usual_recipe(subject, weight_type, args.context, args.prompt)
            yield subject, subject.forecast(recipe, chip, chips.memory_mb(chip), args.host, args.prompt)


def _of_matrix(matrix: Path, args: argparse.Namespace, names: Sequence[str]) -> Iterator[tuple[Subject, Forecast]]:
    from dataclasses import replace

    from axzoo.matrix.forecasts import subject_of_build, usual_recipe

    for build in _builds(matrix):
        subject = subject_of_build(build) if build.chip in names else None
        if subject is None:
            continue
        for weight_type in args.weights or (build.recipe.weight_type,):
            recipe = usual_recipe(subject, weight_type, args.context, args.prompt)
            named = replace(subject, name=build.model)
            yield named, named.forecast(recipe, build.chip, build.npu_memory_mb, args.host, args.prompt)


def _builds(matrix: Path) -> list[Build]:
    from axzoo.matrix.entries import load_zoo

    zoo = load_zoo(matrix)
    return [build for name in zoo.models for build in zoo.builds_of(name)]


def _to_dict(subject: Subject, forecast: Forecast) -> dict[str, Any]:
    from axzoo.matrix.forecasts import job_outlook

    about = {"model": subject.name, "model_type": subject.anatomy.model_type}
    jobs = asdict(job_outlook(subject.anatomy, forecast.recipe))
    return {**about, **forecast.to_dict(), "jobs": jobs, "widths_assumed": subject.anatomy.assumed}


_HEADER = ("chip", "weights", "tok/s", "first token, ms", "NPU memory, MB", "of", "fits", "flash, MB")


def _table(rows: Sequence[tuple[Subject, Forecast]]) -> Iterator[str]:
    """A table of builds, and what they have in common. A matrix has a column with the model's name instead."""
    several = len({subject.name for subject, _ in rows}) > 1
    first, forecast = rows[0]
    cells = [(["model"] if several else []) + list(_HEADER)]
    cells += [([subject.name] if several else []) + _cells(one) for subject, one in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    if not several:
        yield _about(first, forecast)
    yield from ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    if not several:
        yield from _details(rows)


def _about(subject: Subject, forecast: Forecast) -> str:
    anatomy, recipe = subject.anatomy, forecast.recipe
    host = " over PCIe" if forecast.host == "axcl" else ""
    return (
        f"{subject.name}: {anatomy.model_type}, {anatomy.num_hidden_layers} layers, "
        f"{anatomy.on_device / 1e6:.0f} million weights on the chip{host}; cache of {recipe.kv_cache_len} tokens, "
        f"prompt of {forecast.prompt}"
    )


def _cells(forecast: Forecast) -> list[str]:
    memory = forecast.memory
    parts = (
        f"{memory.total_mb} = {memory.weights_mb} weights + {memory.kv_cache_mb} KV + {memory.io_mb} I/O + "
        f"{memory.guard_mb} guard"
    )
    numbers = [_interval(forecast.tok_s), _interval(forecast.ttft_ms)]
    return [
        forecast.chip,
        forecast.recipe.weight_type,
        *numbers,
        parts,
        str(forecast.chip_memory_mb),
        forecast.fits,
        str(forecast.flash_mb),
    ]


def _interval(interval: Interval | None) -> str:
    from axzoo.matrix.forecasts import number

    if interval is None:
        return "not known"
    return f"{number(interval.value)} ({number(interval.low)} to {number(interval.high)})"


def _details(rows: Sequence[tuple[Subject, Forecast]]) -> Iterator[str]:
    from axzoo.matrix.forecasts import job_outlook

    subject, forecast = rows[0]
    jobs = job_outlook(subject.anatomy, forecast.recipe)
    yield (
        f"download about {forecast.download_mb / 1000:.1f} GB; host memory {forecast.host_memory_mb} MB, or less if "
        "the embedding is mapped from flash"
    )
    yield (
        f"build here: {_minutes(jobs.minutes)} on one core, jobs of up to {jobs.memory_mb} MB; the vendor's compiler: "
        f"{_minutes(jobs.vendor_minutes)} of one worker, {jobs.vendor_memory_mb // 1000} GB"
    )
    if subject.anatomy.assumed:
        yield "the matrix has no hidden_size and intermediate_size: the time to the first token is uncertain"
    nearest = dict.fromkeys(row for _, one in rows for row in one.nearest[:1])
    for row in nearest:
        first = f", {row.ttft_ms:.0f} ms to the first token" if row.ttft_ms else ""
        yield f"published: {row}: {row.tok_s} tok/s{first} ({row.source})"


def _minutes(interval: Interval) -> str:
    low, high = (max(1, round(value)) for value in (interval.low, interval.high))
    if low == high:
        return f"about {low} minute{'s' if low > 1 else ''}"
    return f"{low} to {high} minutes"
