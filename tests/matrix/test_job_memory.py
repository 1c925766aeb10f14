"""The memory that jobs request: the estimate, limited to what there is, or a refusal with advice."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from axzoo.backends import Needs
from axzoo.core.errors import AxzooError
from axzoo.matrix import job_memory
from axzoo.matrix.job_memory import memory_request, refuse_stage, usable_memory_mb


@dataclass(frozen=True)
class FakeBuild:
    mem_mb: int
    size_table: dict[str, int] | None
    bundle: str = "results/AX650/tiny-w8a16"

    def needs(self, stage: str, parts: int = 1) -> Needs:
        return Needs(self.mem_mb * parts, 10)


KNOWN, UNKNOWN = FakeBuild(5000, {"layer": 1}), FakeBuild(5000, None)


def request(build: FakeBuild, limit: int | None, stage: str = "bundle", parts: int = 1, attempt: int = 1) -> int:
    available = None if limit is None else (limit, "this machine")
    return memory_request(build, stage, parts, attempt, available)  # type: ignore[arg-type]


def test_request_is_the_estimate_times_the_attempt_up_to_the_limit() -> None:
    assert request(KNOWN, None, attempt=3) == 15000
    assert request(KNOWN, 12000, attempt=2) == 10000
    assert request(KNOWN, 12000, attempt=3) == 12000
    assert request(KNOWN, 5000) == 5000


def test_what_runs_beside_the_command_is_added_once() -> None:
    assert memory_request(KNOWN, "bundle", 1, 2, None, 150) == 10150  # type: ignore[arg-type]
    assert memory_request(KNOWN, "bundle", 1, 2, (10100, "the largest node"), 150) == 10100  # type: ignore[arg-type]


def test_jobs_of_unknown_size_and_small_jobs_may_take_everything() -> None:
    assert request(UNKNOWN, 3000, attempt=2) == 3000
    assert request(FakeBuild(1000, {"layer": 1}), 700) == 700


@pytest.mark.parametrize(
    ("stage", "parts", "advice"),
    [
        ("check_layers", 1, "build without the checks (`snakemake results/AX650/tiny-w8a16/manifest.json`), "),
        ("layer", 4, "add `--config layers_per_job=1`, "),
        ("lock", 1, ""),
    ],
)
def test_a_known_job_that_does_not_fit_is_refused(stage: str, parts: int, advice: str) -> None:
    with pytest.raises(AxzooError) as raised:
        request(KNOWN, 4999, stage, parts)
    assert str(raised.value) == (
        f"{stage} of results/AX650/tiny-w8a16 needs about {5000 * parts} MB of memory in one job, and this machine has "
        f"4999 MB for jobs: {advice}use a machine with more memory, or add `--resources mem_mb={5000 * parts}` to try "
        f"it anyway"
    )


def test_llm_build_gives_its_own_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_memory, "usable_memory_mb", lambda: 4999)
    message = "check_layers of results/AX650/tiny-w8a16 needs about 5000 MB of memory in one job, and this machine has "
    with pytest.raises(AxzooError, match=f"^{message}4999 MB for jobs: use --check_level 0$"):
        refuse_stage(KNOWN, "check_layers", "use --check_level 0")  # type: ignore[arg-type]
    refuse_stage(UNKNOWN, "check_layers", "")  # type: ignore[arg-type]


@pytest.mark.parametrize(("machine", "usable"), [(16_000, 15_500), (1_000, 750)])
def test_some_memory_is_left_for_snakemake(monkeypatch: pytest.MonkeyPatch, machine: int, usable: int) -> None:
    monkeypatch.setattr(job_memory, "physical_memory", lambda: machine * 10**6)
    assert usable_memory_mb() == usable
