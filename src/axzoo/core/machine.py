"""The memory of this machine, and returning freed memory to the operating system."""

from __future__ import annotations

import ctypes
import os


def physical_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def release_freed_memory() -> None:
    """Returns freed memory to the operating system.

    glibc keeps it otherwise; after loading a model that can be as much as the model's weights.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # other C libraries keep very little
        libc.malloc_trim(0)
