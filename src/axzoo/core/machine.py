"""Memory that was freed, and is kept by the allocator."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Hands freed memory to the system. glibc keeps it otherwise: after a model was loaded, as much as its weights."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # other C libraries keep little
        libc.malloc_trim(0)
