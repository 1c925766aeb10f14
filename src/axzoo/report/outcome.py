"""The result of a build that did not succeed: which bundles were built and checked, and which failed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from axzoo.matrix.batches import stage_of

_MOST_NAMES = 20


@dataclass(frozen=True)
class Outcome:
    """Bundles, or models if no bundle of theirs was planned, by their end. `failed` has the stages that failed."""

    built: tuple[str, ...]
    failed: Mapping[str, tuple[str, ...]]
    unfinished: tuple[str, ...]

    @property
    def message(self) -> str:
        """Such as "6 built, 2 failed: AX650/tiny-w8a16 (lock), AX650/small-w8a16 (check_layers)"."""
        names = [f"{name} ({', '.join(stages)})" for name, stages in self.failed.items()]
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        counts = [f"{len(self.built)} built"]
        counts += [f"{len(self.unfinished)} not finished"] if self.unfinished else []
        counts += [f"{len(names)} failed: {', '.join(names[:_MOST_NAMES])}{more}"] if names else []
        return ", ".join(counts)


def outcome_of(dag: Any, failed_jobs: Iterable[Any]) -> Outcome:
    """The outcome of a run, from Snakemake's DAG and the jobs that failed. Counts what this run was to build."""
    # After a checkpoint, Snakemake plans anew, and jobs that have finished are no longer needed.
    planned = [job for job in dag.jobs if dag.needrun(job) or dag.finished(job)]
    bundles: dict[str, list[str]] = {}  # by model
    for job in planned:
        if name := _bundle(job):
            bundles.setdefault(job.wildcards.model, [])
            if name not in bundles[job.wildcards.model]:
                bundles[job.wildcards.model].append(name)
    failed: dict[str, list[str]] = {}
    for job in failed_jobs:
        stage, _ = stage_of(job.rule.name)
        for name in _affected(job, bundles):
            if stage not in failed.setdefault(name, []):
                failed[name].append(stage)
    waiting = {name for job in planned if not dag.finished(job) for name in _affected(job, bundles)}
    names = {name: None for job in planned for name in _affected(job, bundles)}
    return Outcome(
        built=tuple(name for name in names if name not in waiting | failed.keys()),
        failed={name: tuple(failed[name]) for name in sorted(failed)},
        unfinished=tuple(name for name in names if name in waiting - failed.keys()),
    )


def _bundle(job: Any) -> str | None:
    values = job.wildcards_dict
    return f"{values['chip']}/{values['model']}-{values['tag']}" if "chip" in values else None


def _affected(job: Any, bundles: Mapping[str, list[str]]) -> Iterator[str]:
    """The bundles that need the job; the model itself if none is planned."""
    if name := _bundle(job):
        yield name
    elif model := job.wildcards_dict.get("model"):
        yield from bundles.get(model) or [model]
