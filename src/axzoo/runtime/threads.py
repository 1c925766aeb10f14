"""Threads of this process. All sessions share one pool: with private pools, runs were 12 to 25 times slower.

ONNX Runtime's pool can be made only once, so the first session decides its size. Exact mode makes a pool without
threads, because it divides products among threads of its own.
"""

from __future__ import annotations

import functools
import os
from contextlib import suppress

import onnxruntime as ort


@functools.cache
def threads() -> int:
    """The number of threads for computing: OMP_NUM_THREADS, which Snakemake sets per job, or all available CPUs."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return int(limit) if limit.isdecimal() and int(limit) else len(os.sched_getaffinity(0))


def session_options(size: int) -> ort.SessionOptions:
    """Options for a session. If it is the first of this process, the pool gets `size` threads."""
    _make_pool(size)
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    return options


@functools.cache
def _make_pool(size: int) -> None:
    with suppress(Exception):  # the pool exists; ONNX Runtime's exceptions share no base class
        ort.set_global_thread_pool_sizes(size, 1)
