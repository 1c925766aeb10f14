"""One build at a time in a folder, with nothing to clear by hand when one was killed."""

from __future__ import annotations

import fcntl
import sys
from pathlib import Path
from typing import IO

from axzoo.errors import AxzooError

GUARD = Path(".snakemake/axzoo.lock")


def guard(path: Path = GUARD) -> IO[str]:
    """Waits until no other build is at work in the folder. It is this process's until the file is closed: by the
    system, however the process ends. Jobs do not inherit it; what one writes after its build's death is whole or
    nothing, and of equal bytes.

    Snakemake's own lock is a file that outlives kill -9, and would have to be removed by hand.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise AxzooError(f"{path} cannot be written ({error.strerror}): a build keeps its records there") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another build is at work in {Path.cwd()}: waiting for it to end", file=sys.stderr, flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    return file
