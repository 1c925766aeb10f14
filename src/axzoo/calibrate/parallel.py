"""Runs independent tasks in threads, each on one core, so that results do not depend on the number of cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def single_core() -> Iterator[int]:
    """Limits torch to one core per operation, so that the order of summation is fixed. Yields the previous limit."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield cores
    finally:
        torch.set_num_threads(cores)


def in_parallel(function: Callable[[T], R], tasks: Iterable[T]) -> list[R]:
    """function(task) for each task, in order, on as many threads as torch would use, without gradients."""

    def infer(task: T) -> R:
        with torch.inference_mode():
            return function(task)

    with single_core() as cores, ThreadPoolExecutor(cores) as pool:
        return list(pool.map(infer, tasks))
