"""What the machine has: memory, and memory that the allocator keeps."""

from __future__ import annotations

import ctypes
import os


def physical_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Returns freed memory to the system. glibc would keep it: after loading a model, as much as its weights."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # other C libraries keep little
        libc.malloc_trim(0)
