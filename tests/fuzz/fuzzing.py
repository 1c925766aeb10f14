"""Whatever a stranger's file holds, it is read, or refused by one AxzooError: nothing else is raised, nothing written,
and it takes neither long nor memory that the file does not back.

FUZZ_EXAMPLES says how many files each target gets; `make soak` gives them many more.
"""

from __future__ import annotations

import os
import resource
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, settings

from axzoo.core.errors import AxzooError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))
LEAST_MEMORY = 16 << 20
"""Bytes that Python and numpy may take for any file; thirty times the file's size more."""
NATIVE_MEMORY = 1 << 30
"""Bytes of address space that native libraries may take, their idle heaps and mapped files included."""
SECONDS = 20
"""Of computing, so that a busy machine does not matter."""
FUZZED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


def read_or_refuse(read: Callable[[], object], folder: Path, output: Path | None = None) -> None:
    """Raises whatever is neither. `folder` holds all files concerned; only inside `output` may `read` write."""
    before = set(folder.rglob("*"))
    tracemalloc.start()
    try:
        with _bounded():
            read()
    except AxzooError as error:
        assert str(error).strip()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    size = sum(path.stat().st_size for path in before if path.is_file())
    assert peak < LEAST_MEMORY + 30 * size
    after = {path for path in folder.rglob("*") if output is None or path == output or output not in path.parents}
    assert after == before


@contextmanager
def _bounded() -> Iterator[None]:
    """What tracemalloc does not see: beyond the address space there is MemoryError, after the seconds TimeoutError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    usual = signal.signal(signal.SIGPROF, _too_long)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + NATIVE_MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, usual)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _too_long(*_: object) -> None:
    raise TimeoutError("it takes too long to read this file")
