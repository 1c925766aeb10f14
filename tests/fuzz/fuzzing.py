"""Assertion of the fuzz tests: an untrusted file is either read or rejected with an AxzooError.

No other exception is raised, no file is written, and time and memory are bounded. FUZZ_EXAMPLES is the number of files
per test; `make soak` tries many more.
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
BASE_MEMORY = 16 << 20
"""Bytes that Python and numpy may allocate for any file, in addition to thirty times its size."""
NATIVE_MEMORY = 1 << 30
"""Bytes of address space that native libraries may use, including their idle heaps and mapped files."""
SECONDS = 20
"""Limit on CPU time, which does not depend on the load of the machine."""
FUZZED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


def read_or_reject(read: Callable[[], object], folder: Path, output: Path | None = None) -> None:
    """Assert that `read` returns or raises AxzooError.

    `folder` contains all files concerned; `read` may write only inside `output`.
    """
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
    assert peak < BASE_MEMORY + 30 * size
    after = {path for path in folder.rglob("*") if output is None or path == output or output not in path.parents}
    assert after == before


@contextmanager
def _bounded() -> Iterator[None]:
    """Limit address space (MemoryError), which tracemalloc does not measure, and CPU time (TimeoutError)."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGPROF, _time_out)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + NATIVE_MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _time_out(*_: object) -> None:
    raise TimeoutError("it takes too long to read this file")
