"""Say what a build would make again, and why; nothing is fetched, locked or compiled."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from axzoo.report.why import PlannedJob


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="files of results/ (default: the whole matrix)")
    parser.add_argument("--configfile", type=Path, metavar="MATRIX", help="another matrix than config/zoo.yaml")
    parser.add_argument(
        "--hash", action="store_true", help="digest local checkpoints that changed, to say which tensors did"
    )


def run(args: argparse.Namespace) -> None:
    from axzoo.report.why import dry_run, in_words, planned_jobs

    jobs = planned_jobs(dry_run(args.targets, args.configfile))
    if not jobs:
        print("nothing: all is up to date")
    for job in jobs:
        print(f"{job.rule}: {job.file}")
        if job.hangs_on_a_lock:
            print("    only if the lock, made again before it, finds that its tensors changed")
            continue
        for reason in job.reasons:
            print(f"    {in_words(reason)}")
    if args.hash:
        _tell_tensors(jobs, args.configfile)


def _tell_tensors(jobs: list[PlannedJob], matrix: Path | None) -> None:
    from axzoo.fetch.sources import FolderSource
    from axzoo.matrix.plan import make_plan
    from axzoo.parts.lock import make_lock
    from axzoo.report.why import changed_tensors

    plan = make_plan([matrix or Path("config/zoo.yaml")], demo="config/demo.yaml")
    models = {Path(job.file).parent.name for job in jobs if job.rule in ("fetch", "lock")}
    for build in {build.model: build for build in (*plan.wanted, *plan.demo) if build.model in models}.values():
        fetched = build.checkpoint
        folder = Path(build.source.path) if isinstance(build.source, FolderSource) else fetched
        if not (folder / "config.json").exists():
            print(f"{build.model}: not here yet, nothing to digest")
            continue
        config = None if build.model_config is None else Path(build.model_config)
        lock = make_lock(folder, build.model_type, build.num_hidden_layers, build.ignore_config_keys, config)
        for line in changed_tensors(build.locks, lock) or ["no tensor changed"]:
            print(f"{build.model}: {line}")
