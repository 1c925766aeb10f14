"""The memory of this machine, out-of-memory kills, and returning freed memory to the operating system."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def physical_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may use: the machine's, or the limit of its cgroup (v1 or v2) if that is lower.

    `root` is the folder that contains proc and sys.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> Iterator[int]:
    """The limits of this process's cgroup and its parents. Version 1 states a huge number if there is no limit."""
    for folder, name in _cgroup_folders(root, "memory.max", "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such file; "max"
            yield int((folder / name).read_text())


def _cgroup_folders(root: Path, unified: str, legacy: str) -> Iterator[tuple[Path, str]]:
    """The folders of the memory cgroup and its parents, each with the file's name in its version.

    A container sees its own cgroup as the top, although /proc states the path on the host.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):  # not Linux
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", legacy
        elif number == "0" and not controllers:
            top, name = root / "sys/fs/cgroup", unified
        else:
            continue
        below = Path(path.lstrip("/"))
        for part in (below, *below.parents):
            yield top / part, name


def out_of_memory_kills(root: Path = Path("/")) -> int | None:
    """How often Linux has killed a process because memory ran out, since it started; None if unknown.

    Includes kills because of a cgroup's limit.
    """
    with suppress(OSError, ValueError):
        for line in (root / "proc/vmstat").read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return None


def release_freed_memory() -> None:
    """Returns freed memory to the operating system.

    glibc keeps it otherwise; after loading a model that can be as much as the model's weights.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # other C libraries keep very little
        libc.malloc_trim(0)
