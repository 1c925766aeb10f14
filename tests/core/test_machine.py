"""The memory that a process may use: the machine's, or that of its cgroup."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from axzoo.core.machine import out_of_memory_kills, physical_memory

GIB = 1 << 30
MACHINE = 64 * GIB


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": MACHINE // 4096, "SC_PAGE_SIZE": 4096}.__getitem__)


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


UNLIMITED_V1 = 9223372036854771712

CASES: dict[str, tuple[dict[str, object], int]] = {
    "no cgroups": ({}, MACHINE),
    "v2": ({"proc/self/cgroup": "0::/user/job", "sys/fs/cgroup/user/job/memory.max": 16 * GIB}, 16 * GIB),
    "v2, of a parent": (
        {
            "proc/self/cgroup": "0::/user/job",
            "sys/fs/cgroup/user/job/memory.max": "max",
            "sys/fs/cgroup/user/memory.max": 8 * GIB,
        },
        8 * GIB,
    ),
    "v2, in a container": ({"proc/self/cgroup": "0::/docker/abc", "sys/fs/cgroup/memory.max": 4 * GIB}, 4 * GIB),
    "v2, unlimited": ({"proc/self/cgroup": "0::/job", "sys/fs/cgroup/job/memory.max": "max"}, MACHINE),
    "v2, above the machine's": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": 2 * MACHINE}, MACHINE),
    "v1": (
        {
            "proc/self/cgroup": "5:devices:/\n4:memory,hugetlb:/job\n0::/",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": 2 * GIB,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1,
        },
        2 * GIB,
    ),
    "v1, in a container": (
        {"proc/self/cgroup": "4:memory:/docker/abc", "sys/fs/cgroup/memory/memory.limit_in_bytes": 3 * GIB},
        3 * GIB,
    ),
    "v1, unlimited": (
        {"proc/self/cgroup": "4:memory:/", "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1},
        MACHINE,
    ),
    "a colon in the path": ({"proc/self/cgroup": "0::/a:b", "sys/fs/cgroup/a:b/memory.max": GIB}, GIB),
}


@pytest.mark.parametrize("name", CASES)
def test_memory_is_that_of_the_cgroup(name: str, tmp_path: Path) -> None:
    files, expected = CASES[name]
    assert physical_memory(write(tmp_path, files)) == expected


def test_number_of_out_of_memory_kills(tmp_path: Path) -> None:
    assert out_of_memory_kills(tmp_path) is None
    assert out_of_memory_kills(write(tmp_path, {"proc/vmstat": "pgfault 7\noom_kill 3\noom_killer 9"})) == 3
