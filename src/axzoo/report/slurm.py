"""What Snakemake's SLURM executor lacks: the size of the nodes, prompt status checks, the reasons why jobs wait, and an
end that leaves no jobs behind.

Everything is asked of SLURM's own commands. If a command fails, the build continues without its answer.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

_TIMEOUT_S = 30
_SHORTEST_S, _LONGEST_S = 2.0, 30.0
_SHARE = 4
"""A job that ran for t seconds is noticed after at most t / 4 seconds, within the limits above."""

_ORDINARY_S = 60
_ORDINARY = {"None", "Priority", "Resources", "Dependency", "BeginTime", "Prolog", "Cleaning"}
"""Reasons of jobs that wait for others to end. They are reported only if nothing has happened for a minute."""

_NEVER = {
    "PartitionConfig": "no node of the partition has the CPUs, memory or time that it requests",
    "PartitionNodeLimit": "no node of the partition has what it requests",
    "PartitionTimeLimit": "it requests more time than the partition allows",
    "BadConstraints": "no node meets its constraints",
    "AccountNotAllowed": "the account may not use the partition",
    "QOSNotAllowed": "the account may not use this quality of service",
    "InvalidAccount": "the account does not exist",
    "InvalidQOS": "the quality of service does not exist",
    "JobHeldUser": "a user holds it: scontrol release lets it start",
    "JobHeldAdmin": "an administrator holds it",
}
"""Reasons that do not end by themselves."""


@dataclass(frozen=True)
class Node:
    """The most CPUs and the most memory that a node of a partition has. Memory is in MB as in SLURM's `--mem`."""

    partition: str
    cpus: int
    mem_mb: int


def largest_node(partition: str | None) -> Node | None:
    """The largest node of a partition, by default of SLURM's default partition. None if SLURM does not say."""
    lines = _ask(["sinfo", "--noheader", "--exact", "--format", "%P|%c|%m|%B"])
    rows = [line.split("|") for line in lines]
    named = [row for row in rows if len(row) == 4 and (row[0].rstrip("*") == partition or not partition)]
    default = [row for row in named if row[0].endswith("*")]
    found = named if partition else default
    if not found:
        return None
    return Node(
        partition or found[0][0].rstrip("*"),
        max(min(_number(cpus), _number(limit) or _number(cpus)) for _, cpus, _, limit in found),
        max(_number(memory) for _, _, memory, _ in found),
    )


def _number(text: str) -> int:
    """The number at the start of a field; 0 for UNLIMITED."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def _ask(command: Sequence[str]) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [] if done.returncode else done.stdout.splitlines()


@dataclass(frozen=True)
class PendingJob:
    """A job that SLURM has not started. `name` is Snakemake's comment on it, with rule and wildcards."""

    id: str
    reason: str
    name: str


def pending_jobs(run: str) -> list[PendingJob]:
    """The waiting jobs of a run; all jobs of a run have the same name."""
    lines = _ask(["squeue", "--noheader", "--states", "PENDING", "--name", run, "--format", "%i|%r|%k"])
    return [PendingJob(*fields) for fields in (line.split("|", 2) for line in lines) if len(fields) == 3]


def describe_pending(jobs: Iterable[PendingJob]) -> Iterator[tuple[str, str]]:
    """For each reason: the reason, and a message with the number of jobs that wait for it and one of them."""
    jobs = list(jobs)
    for reason, count in Counter(job.reason for job in jobs).items():
        example = next(job for job in jobs if job.reason == reason)
        number = f"SLURM job {example.id} waits" if count == 1 else f"{count} SLURM jobs wait, such as {example.id}"
        name = example.name.removeprefix("rule_").replace("_wildcards_", " ")
        message = f"{number} ({name}): {reason}"
        if reason in _NEVER:
            message += f": {_NEVER[reason]}. It will not start by itself: interrupt the build, or change the job"
        yield reason, message


@dataclass
class Attention:
    """Watches the jobs of an executor between its status checks."""

    run: str
    warn: Callable[[str], None]
    changed: float = field(default_factory=time.monotonic)
    active: frozenset[str] = frozenset()
    told: set[str] = field(default_factory=set)

    def next_wait(self, active: Iterable[str]) -> float:
        """Seconds until the next status check, given the ids of the unfinished jobs: a share of the time in which no
        job was submitted or ended."""
        now, active = time.monotonic(), frozenset(active)
        if active != self.active:
            self.active, self.changed = active, now
            self.told.intersection_update(_NEVER)
        return min(_LONGEST_S, max(_SHORTEST_S, (now - self.changed) / _SHARE))

    def report_pending(self) -> None:
        """Log each reason for which jobs wait, once."""
        quiet = time.monotonic() - self.changed >= _ORDINARY_S
        for reason, message in describe_pending(pending_jobs(self.run)):
            if reason not in self.told and (quiet or reason not in _ORDINARY):
                self.told.add(reason)
                self.warn(message)


def attend(executor: Any, warn: Callable[[str], None]) -> None:
    """Makes Snakemake's SLURM executor check its jobs promptly, log why they wait, and cancel them when it ends.

    By itself, it waits ten seconds longer after each check that finds no ended job, and no setting changes that.
    """
    attention = Attention(executor.run_uuid, warn)

    async def sleep() -> None:
        if executor.active_jobs:
            await asyncio.to_thread(attention.report_pending)
        await asyncio.sleep(attention.next_wait(job.external_jobid for job in executor.active_jobs))

    executor.sleep = sleep
    # By default, SIGTERM waits for all submitted jobs, and SIGHUP leaves them behind. Ctrl-C cancels them.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # SIGHUP is ignored under nohup
            signal.signal(number, signal.default_int_handler)
    atexit.register(cancel, executor.run_uuid, os.getpid())


def cancel(run: str, process: int) -> None:
    """Cancel the jobs of a run that have not ended, in the process that submitted them.

    The executor does so too when it is interrupted, but it overlooks jobs whose status it is just checking.
    """
    if os.getpid() == process:
        _ask(["scancel", "--quiet", "--name", run])
