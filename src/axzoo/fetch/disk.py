"""Room on the disk, asked for before it is needed."""

from __future__ import annotations

import shutil
from pathlib import Path

from axzoo.errors import AxzooError


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def need_space(folder: Path, size: int) -> None:
    """Raises AxzooError when the disk of `folder` (which exists) has less than `size` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise AxzooError(
            f"no space for {megabytes(size)} in {folder}: its disk has {megabytes(free)} left; free some and run again"
        )
