"""Threads over independent pieces of work, each piece on one core: the number of cores does not enter the numbers."""

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
    """torch computes every operation on one core, so that sums are formed in one order. Gives the cores it had."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield cores
    finally:
        torch.set_num_threads(cores)


def in_parallel(function: Callable[[T], R], pieces: Iterable[T]) -> list[R]:
    """function(piece) for each piece, in their order; run on as many threads as torch would use, without gradients."""

    def infer(piece: T) -> R:
        with torch.inference_mode():
            return function(piece)

    with single_core() as cores, ThreadPoolExecutor(cores) as pool:
        return list(pool.map(infer, pieces))
