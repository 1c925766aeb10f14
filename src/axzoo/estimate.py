"""What a build will take: memory for its largest job, room on the disk. Asked before the first minute of compiling."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

from axzoo.checkpoint.lock import Lock
from axzoo.checkpoint.part import Part
from axzoo.errors import AxzooError

BASE_MEMORY = 120 << 20
"""A compile job before it reads a tensor: Python, numpy, onnx."""

BLOCK_MEMORY = 200 << 20
"""A block of rows as read and the pieces of it being quantized (at most; small tensors take less)."""


def elements(part: Part) -> int:
    return sum(math.prod(shape) for shape in part.shapes.values())


def job_memory(part: Part, bytes_per_weight: float = 1.0) -> int:
    """Bytes a job compiling `part` peaks at: its stored weights and one block."""
    largest = max(math.prod(shape) for shape in part.shapes.values())
    return int(BASE_MEMORY + elements(part) * bytes_per_weight + min(BLOCK_MEMORY, 20 * largest))


def bundle_bytes(lock: Lock) -> int:
    """The least a bundle takes: weights at one byte each, the embedding at two."""
    return sum(elements(part) for part in (*lock.layers, lock.post)) + 2 * elements(lock.embed)


def check_sizes(lock: Lock, layer: int, post: int, kv_width: int) -> None:
    """Raises AxzooError when a matrix entry's `sizes`, which decide where a model fits, are not this model's.

    `kv_width` must be exact, the parameters of a layer and of the post layer may be 1 % off.
    """
    found = {
        "layer": (layer, max(map(elements, lock.layers)), 0.01),
        "post": (post, elements(lock.post), 0.01),
        "kv_width": (kv_width, lock.spec.layer.kv_size, 0.0),
    }
    for key, (said, true, tolerance) in found.items():
        if abs(said - true) > tolerance * true:
            raise AxzooError(
                f"the matrix says sizes.{key}: {said}, but the checkpoint has {true}: correct it, since it decides "
                f"which chips the model fits"
            )


def check_room(lock: Lock, folder: Path) -> None:
    """Raises AxzooError when this machine cannot hold the largest job, or the disk of `folder` an s8 bundle."""
    needed = max(job_memory(part) for part in (*lock.layers, lock.post))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise AxzooError(
            f"compiling {folder.name} needs about {needed >> 20} MB in one job, and this machine has {memory >> 20} MB"
        )
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if bundle_bytes(lock) > free:
        raise AxzooError(
            f"a bundle of {folder.name} takes at least {bundle_bytes(lock) >> 20} MB, and the disk of {existing} has "
            f"{free >> 20} MB left: free some and run again"
        )
