"""What axzoo asks of SLURM's commands, here replaced by scripts, and what it makes of the answers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from axzoo.report import slurm
from axzoo.report.slurm import Attention, Node, PendingJob, describe_pending, largest_node, pending_jobs


def answer(monkeypatch: pytest.MonkeyPatch, folder: Path, command: str, lines: str, status: int = 0) -> None:
    """Puts a program on PATH that prints the lines."""
    program = folder / command
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}\nEND\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


PARTITIONS = "main*|2|21694|UNLIMITED\nmain*|16|64000+|UNLIMITED\nbig|128|1031000|64"


@pytest.mark.parametrize(
    ("partition", "node"),
    [
        (None, Node("main", 16, 64000)),
        ("main", Node("main", 16, 64000)),
        ("big", Node("big", 64, 1031000)),  # the partition's limit of CPUs per node
        ("other", None),
    ],
)
def test_largest_node(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, partition: str | None, node: Node | None
) -> None:
    answer(monkeypatch, tmp_path, "sinfo", PARTITIONS)
    assert largest_node(partition) == node


def test_nothing_is_known_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer(monkeypatch, tmp_path, "sinfo", "error|1|1|1", status=1)
    assert largest_node(None) is None
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert largest_node(None) is None
    assert pending_jobs("axzoo_1") == []


def test_reasons_are_counted_and_those_without_end_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer(
        monkeypatch,
        tmp_path,
        "squeue",
        "3|PartitionConfig|rule_lock_wildcards_tiny\n4|Priority|rule_post\n5|Priority|rule_embed",
    )
    jobs = pending_jobs("axzoo_1")
    assert jobs[0] == PendingJob("3", "PartitionConfig", "rule_lock_wildcards_tiny")
    assert dict(describe_pending(jobs)) == {
        "PartitionConfig": "SLURM job 3 waits (lock tiny): PartitionConfig: no node of the partition has the CPUs, "
        "memory or time that it requests. It will not start by itself: interrupt the build, or change the job",
        "Priority": "2 SLURM jobs wait, such as 4 (post): Priority",
    }


def test_jobs_that_wait_for_others_are_reported_only_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(slurm.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(
        slurm,
        "pending_jobs",
        lambda run: [PendingJob("1", "Resources", "rule_a"), PendingJob("2", "BadConstraints", "b")],
    )
    told: list[str] = []
    attention = Attention("axzoo_1", told.append, changed=0.0)
    attention.report_pending()
    attention.report_pending()
    assert [message.partition(":")[0] for message in told] == ["SLURM job 2 waits (b)"]
    clock[0] = 60
    attention.report_pending()
    attention.report_pending()
    assert [message.partition(":")[0] for message in told[1:]] == ["SLURM job 1 waits (a)"]


def test_pause_between_checks_is_a_share_of_the_time_since_the_last_change(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(slurm.time, "monotonic", lambda: clock[0])
    attention = Attention("axzoo_1", lambda message: None, changed=0.0)
    waits = []
    for now, active in ((0, {"1"}), (4, {"1"}), (20, {"1"}), (100, {"1"}), (1000, {"1"}), (1001, {"1", "2"})):
        clock[0] = now
        waits.append(attention.next_wait(active))
    assert waits == [2, 2, 5, 25, 30, 2]
