"""The memory that jobs request from Snakemake, limited to what the machine or the cluster's nodes have."""

from __future__ import annotations

from axzoo.core.errors import AxzooError
from axzoo.core.machine import physical_memory
from axzoo.matrix.build import Build

_RESERVED_MB = 500
"""For Snakemake, which takes up to 440 MB to plan 20,000 jobs, and other programs."""

SNAKEMAKE_MB = 150
"""For Snakemake itself, which runs every job on another machine: 105 MB when it was measured."""

_SMALL_MB = 1000
"""Estimates up to this are generous bounds for small jobs, which the machine may do with less."""


def usable_memory_mb() -> int:
    """The memory in MB (10^6 bytes) that all jobs on this machine may use together."""
    memory = physical_memory() // 10**6
    return memory - min(_RESERVED_MB, memory // 4)


def memory_request(
    build: Build, stage: str, parts: int, attempt: int, available: tuple[int, str] | None, beside: int = 0
) -> int:
    """The `mem_mb` of a job: its estimate, times the number of the attempt, but at most what is available.

    `available` is the memory in MB that a job can have, and where; None if unknown. A job whose size is unknown may
    take all of it. `beside` is the memory in MB of what else runs in the job.
    Raises AxzooError when the estimate of a job of known size exceeds what is available.
    """
    needed = build.needs(stage, parts).mem_mb
    if available is None:
        return needed * attempt + beside
    limit, where = available
    if too_large := _excess(build, stage, parts, limit, where):
        raise AxzooError(
            f"{too_large}: {_advice(build, stage, parts)}use a machine with more memory, or add "
            f"`--resources mem_mb={needed}` to try it anyway"
        )
    return min(needed * attempt + beside, limit)


def refuse_stage(build: Build, stage: str, advice: str) -> None:
    """Raises AxzooError, ending in `advice`, when a job of the stage can never fit this machine."""
    if too_large := _excess(build, stage, 1, usable_memory_mb(), "this machine"):
        raise AxzooError(f"{too_large}: {advice}")


def _excess(build: Build, stage: str, parts: int, limit: int, where: str) -> str:
    needed = build.needs(stage, parts).mem_mb
    if needed <= max(limit, _SMALL_MB) or build.size_table is None:
        return ""
    return (
        f"{stage} of {build.bundle} needs about {needed} MB of memory in one job, and {where} has {limit} MB for jobs"
    )


def _advice(build: Build, stage: str, parts: int) -> str:
    if parts > 1 and build.needs(stage, 1).mem_mb < build.needs(stage, parts).mem_mb:
        return "add `--config layers_per_job=1`, "
    if stage.startswith("check_"):
        return f"build without the checks (`snakemake {build.bundle}/manifest.json`), "
    return ""
