"""The outcome of a build, from jobs as Snakemake's DAG has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

from axzoo.report.outcome import Outcome, outcome_of


@dataclass(frozen=True, eq=False)
class Job:
    name: str
    wildcards_dict: dict[str, str]

    @property
    def rule(self) -> SimpleNamespace:
        return SimpleNamespace(name=self.name)

    @property
    def wildcards(self) -> SimpleNamespace:
        return SimpleNamespace(**self.wildcards_dict)


@dataclass
class Dag:
    """Jobs that are finished, jobs that are still needed, and jobs that were up to date."""

    done: list[Job]
    open: list[Job]
    rest: list[Job] = field(default_factory=list)

    @property
    def jobs(self) -> list[Job]:
        return [*self.done, *self.open, *self.rest]

    def needrun(self, job: Job) -> bool:
        return job in self.open

    def finished(self, job: Job) -> bool:
        return job in self.done


def of_model(rule: str, model: str) -> Job:
    return Job(rule, {"model": model})


def of_build(rule: str, model: str, chip: str = "AX650") -> Job:
    return Job(rule, {"chip": chip, "model": model, "tag": "w8a16"})


def test_builds_are_built_failed_or_not_finished() -> None:
    failed = [of_build("layers_0_7", "b"), of_build("post", "b"), of_model("fetch", "c"), of_model("lock", "e")]
    done = [of_model("lock", "a"), of_build("bundle", "a"), of_build("check_layers", "a"), of_build("embed", "b")]
    waiting = [
        of_build("bundle", "b"),
        of_build("bundle", "c"),
        of_build("bundle", "c", "AX620E"),
        of_build("post", "d"),
    ]
    outcome = outcome_of(Dag(done, [*failed, *waiting], [of_build("bundle", "untouched")]), failed)
    assert outcome == Outcome(
        built=("AX650/a-w8a16",),
        failed={
            "AX620E/c-w8a16": ("fetch",),
            "AX650/b-w8a16": ("layer", "post"),
            "AX650/c-w8a16": ("fetch",),
            "e": ("lock",),  # none of its bundles is planned
        },
        unfinished=("AX650/d-w8a16",),
    )
    assert outcome.message == (
        "1 built, 1 not finished, 4 failed: AX620E/c-w8a16 (fetch), AX650/b-w8a16 (layer, post), "
        "AX650/c-w8a16 (fetch), e (lock)"
    )


def test_a_long_list_of_failures_is_cut() -> None:
    outcome = Outcome((), {f"m{i}": ("fetch",) for i in range(22)}, ())
    assert outcome.message.startswith("0 built, 22 failed: m0 (fetch), m1 (fetch), ")
    assert outcome.message.endswith("m19 (fetch) and 2 more")
