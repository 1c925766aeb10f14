"""Compile jobs of backend pulsar2 with the simulator."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from axzoo.backends import load_backend
from axzoo.backends.part_job import PartFile, PartJob, build_parts
from axzoo.core.files import read_json
from axzoo.parts.lock import make_lock, write_lock
from axzoo.weights.recipe import Recipe
from tiny_model import Checkpoint

PROGRAM = Path(__file__).parent / "pulsar2_simulator" / "simulator.py"
RECIPE = Recipe(prefill_len=8, kv_cache_len=31, last_kv_cache_len=(8, 16))


def simulator(tool: str = "llm_build", **settings: Any) -> dict[str, Any]:
    """The matrix key `compiler` that runs the simulator."""
    return {"command": [sys.executable, str(PROGRAM), tool], "memory_mb": 1000, **settings}


class Jobs:
    """A locked checkpoint, a store, and jobs that build its parts."""

    def __init__(self, checkpoint: Checkpoint, root: Path, **ignored: Any) -> None:
        self.checkpoint, self.root = checkpoint, root
        lock = make_lock(checkpoint.folder, checkpoint.model_type, checkpoint.layers, **ignored)
        write_lock(lock, root / "locks", checkpoint.folder, {"path": "tiny"})

    def build(
        self,
        *parts: str,
        compiler: Mapping[str, Any] | None = None,
        recipe: Recipe = RECIPE,
        chip: str = "AX650",
        backend: str = "pulsar2",
    ) -> list[Path]:
        """Builds the parts in one job. Returns their files."""
        settings = load_backend(backend).settings((compiler or simulator()) if backend == "pulsar2" else None)
        files = [
            PartFile(self.root / "locks" / f"{part}.json", self.root / "out" / part, self.root / "receipts" / part)
            for part in parts
        ]
        source = self.checkpoint.source
        build_parts(PartJob(files, source, self.root / "store", recipe, backend, chip, None, settings))
        return [file.output for file in files]

    def receipt(self, part: str) -> dict[str, Any]:
        return dict(read_json(self.root / "receipts" / part))

    def leftovers(self) -> list[str]:
        """What jobs left in the store's folder besides entries."""
        return [path.name for path in (self.root / "store").glob(".job*")]


def calls(file: Path) -> list[dict[str, Any]]:
    """The calls of the simulator that it recorded in a file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def value_of(call: Mapping[str, Any], option: str) -> str:
    words: Sequence[str] = call["arguments"]
    return words[words.index(option) + 1]


def processes_with(text: str) -> list[int]:
    """Running processes, except this one, with `text` in their arguments or in their working folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text(errors="replace")
            if int(process.name) != os.getpid() and text in words + str((process / "cwd").readlink()):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def wait_until_none(text: str, seconds: float = 10) -> None:
    """Waits until no process has `text` in its arguments or working folder."""
    deadline = time.monotonic() + seconds
    while found := processes_with(text):
        assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_text() for pid in found]
        time.sleep(0.05)
