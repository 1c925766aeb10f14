"""Which modes of the engine fit in the memory of this machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from axzoo.core.errors import AxzooError
from axzoo.core.machine import physical_memory
from axzoo.runtime.bundle_folder import ModelFiles
from axzoo.runtime.model import Mode

logger = logging.getLogger(__name__)

BYTES_PER_STORED_BYTE: Mapping[Mode, float] = {"fast-prompts": 4.5, "fast": 3.0}
"""Peak memory while files are loaded, per byte of the files (docs/performance.md). Exact mode needs no memory for
weights, because they stay in the files."""


def choose_mode(files: ModelFiles, given: Mode | None, preferred: Sequence[Mode]) -> Mode:
    """The given mode, or else the first of `preferred` that fits in memory, or the last one.

    Raises AxzooError when the given mode does not fit.
    """
    weights = sum(path.stat().st_size for path in (*files.layers, files.post) if path.is_file())
    memory = physical_memory()
    for mode in preferred if given is None else [given]:
        needed = int(BYTES_PER_STORED_BYTE.get(mode, 0) * weights)
        if needed <= memory:
            return mode
        shortage = f"mode {mode} needs {needed >> 20} MB to load the model, and this machine has {memory >> 20} MB"
        if given is not None:
            raise AxzooError(f"{shortage}: use --mode exact, which leaves the weights in the files")
        logger.warning(f"{shortage}: not using it")
    return preferred[-1]
